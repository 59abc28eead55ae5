"""docs/recipes.md shows what the examples with real sizes are now, and every one of them fits its chips."""

from __future__ import annotations

import pytest

from benchmarks.recipes_table import BEGIN, DOCUMENT, END, PUBLISHED, published, tables
from flagscale_testing.example_jobs import FOLDERS, ROOT, estimated, experiment_file, real_sizes

EXAMPLES = [example for folder in FOLDERS for example in real_sizes(folder)]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_page_has_the_tables_of_now() -> None:
    text = DOCUMENT.read_text("utf-8").partition(BEGIN)[2].partition(END)[0].strip()
    assert text == tables(), "write them again: python -m benchmarks.recipes_table"


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_fits_its_chips(example: str) -> None:
    job, found = estimated(example)
    assert found.surely_fits, [f"{one.high / 2**30:.1f} GiB" for one in found.stages]
    assert published(job.name)


def test_every_folder_of_examples_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    folders = [conf.parent.name for conf in (ROOT / "examples").glob("*/conf")]
    assert {*FOLDERS} <= {*folders}
    assert [folder for folder in folders if f"[examples/{folder}](docs/" not in readme] == []


def test_every_published_size_is_that_of_an_example() -> None:
    names = [experiment_file(example).stem.removeprefix("config_") for example in EXAMPLES]
    assert [size for size in PUBLISHED if not any(size.endswith(name) for name in names)] == []
