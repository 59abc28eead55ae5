"""Every page is reachable from `docs/index.md`, every link and anchor exists, and so do the API's modules."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from flagscale.plan import prepare

ROOT = Path(__file__).parents[2]
INDEX = ROOT / "docs" / "index.md"
PAGES = sorted([*ROOT.glob("[A-Z]*[A-Z].md"), *(ROOT / "docs").glob("*.md")])

_CODE = re.compile(r"^```.*?^```|^    .*?$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^]]*\]\(([^)\s]+)\)")


def links(text: str) -> list[str]:
    """Return the relative targets that a page links to, those of pictures included."""
    return [link for link in _LINK.findall(_CODE.sub("", text)) if "://" not in link]


def anchors(text: str) -> set[str]:
    """Return the names of a page's headings, as links write them."""
    titles = re.findall(
        r"^#+ +(.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def wrong_links(page: Path, text: str) -> list[str]:
    """Return the links of a page that lead nowhere."""

    def leads_somewhere(link: str) -> bool:
        name, _, anchor = link.partition("#")
        target = page.parent / name
        # A folder is no page, and the doc site has no link for it.
        if name and not target.is_file():
            return False
        return not anchor or anchor in anchors(target.read_text("utf-8") if name else text)

    return [link for link in links(text) if not leads_somewhere(link)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert wrong_links(page, page.read_text("utf-8")) == []


def test_wrong_links_are_found() -> None:
    text = (
        "[a](nowhere.md) [b](hosts.md#no-such-heading) [c](hosts.md#when-something-dies) [d](#here)\n\n# Here"
    )
    assert wrong_links(INDEX, text) == ["nowhere.md", "hosts.md#no-such-heading"]
    assert wrong_links(INDEX, "    [code](x.md)\n`[code](y.md)` [site](https://example.org/z.md)") == []


def test_every_page_can_be_reached_from_the_index() -> None:
    reached: set[Path] = set()
    pages = [INDEX]
    while pages:
        page = pages.pop()
        reached.add(page)
        targets = {
            (page.parent / link.partition("#")[0]).resolve() for link in links(page.read_text("utf-8"))
        }
        pages += [target for target in targets - reached if target.suffix == ".md"]
    assert set(PAGES) <= reached


def test_every_module_of_the_api_pages_exists() -> None:
    names = re.findall(r"automodule:: (\S+)", (ROOT / "docs" / "api.md").read_text("utf-8"))
    assert names
    assert [name for name in names if find_spec(name) is None] == []


def test_what_an_action_takes_is_on_the_api_page() -> None:
    assert "flagscale.plan.prepare" in (ROOT / "docs" / "api.md").read_text("utf-8")
    assert "Request" in prepare.__all__  # Sphinx leaves out imported names unless they are listed


def test_entry_points_in_the_readme_are_those_of_the_packages_that_tests_install() -> None:
    shown = set(re.findall(r'^    (\w+ = "[\w.]+:\w+")$', (ROOT / "README.md").read_text(), re.MULTILINE))
    assert len(shown) > 5
    packages = [path.read_text() for path in (ROOT / "tests/outside").glob("*/pyproject.toml")]
    assert shown <= {line for text in packages for line in text.splitlines()}
