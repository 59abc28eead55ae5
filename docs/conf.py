"""The doc site, built from the pages as they are read in a clone: `make docs`.

Sphinx with MyST, because both are maintained and check links, anchors and API pages in one strict build.
"""

import re

from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring

from flagscale import __version__

project = "FlagScale"
release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]

# The source folder is the root of the clone, so that README and its neighbours are pages too.
root_doc = "docs/index"
include_patterns = ["docs/*.md", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"]
exclude_patterns = [".*", "build", "data", "outputs"]
myst_heading_anchors = 4

# A dataclass is shown by its fields, each with its text; its signature would repeat them without it.
autodoc_default_options = {"members": True, "undoc-members": True, "member-order": "bysource"}
autodoc_class_signature = "separated"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 100
default_role = "code"
highlight_language = "text"

html_theme = "furo"
html_title = f"FlagScale {release}"
html_extra_path = ["site"]  # an `index.html` that leads to the root page
html_copy_source = False
html_show_copyright = False


def _navigation(app: Sphinx, page: str, content: list[str]) -> None:
    """Give the root page a hidden table of contents for each of its lists of links."""
    if page == root_doc:
        title, *sections = content[0].split("\n## ")
        content[0] = "\n## ".join([title, *map(_with_contents, sections)])


def _with_contents(section: str) -> str:
    caption = section.partition("\n")[0]
    pages = "\n".join(re.findall(r"^- \[[^]]*\]\(([^)]+)\.md\)", section, re.MULTILINE))
    return f"{section}\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{pages}\n```\n"


def _docstring(app: Sphinx, kind: str, name: str, item: object, options: object, lines: list[str]) -> None:
    """Render `Args:` and `Raises:`. Napoleon itself would read `None: unknown` of a field as a type."""
    if kind not in ("attribute", "property", "data"):
        lines[:] = GoogleDocstring(lines, Config(), app, kind, name, item, options).lines()


def _is_skipped(app: Sphinx, kind: str, name: str, item: object, skip: bool, options: object) -> bool | None:
    """Leave out constructors that `dataclass` made; None: as Sphinx decides."""
    code = getattr(item, "__code__", None)
    return True if name == "__init__" and code and code.co_filename == "<string>" else None


def setup(app: Sphinx) -> None:
    app.connect("autodoc-skip-member", _is_skipped)
    app.connect("autodoc-process-docstring", _docstring)
    app.connect("source-read", _navigation)
