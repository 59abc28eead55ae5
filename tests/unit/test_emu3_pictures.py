"""The files of a batch of pictures: complete or not there, kept over a restart, without those of before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flagscale.checks.emu3 import Grid
from flagscale.checks.guidance import Guidance
from flagscale.checks.picture_prompts import Drawing
from vllm_flagscale.emu3.batch import Picture, seed_made
from vllm_flagscale.emu3.pictures import PictureFiles
from vllm_flagscale.emu3.prompts import PictureRequest

SOURCE = {"prompt": [1, 2], "seed": 7}


def record(index: int, *files: str) -> dict[str, Any]:
    pictures = [{"file": file, "seed": 7} for file in files]
    return {"prompt": "<a> cat", "index": index, "size": "64x48", "guidance_scale": 3.0, "pictures": pictures}


def test_a_batch_appears_once_it_is_complete(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    files = PictureFiles(tmp_path / "pictures", results)
    files.add("0000_0.png", b"one", SOURCE)
    assert not (tmp_path / "pictures").exists()
    assert (files.partial / "0000_0.png").read_bytes() == b"one"
    files.publish([record(0, files.file_of("0000_0.png"))])
    assert not files.partial.exists()
    (line,) = map(json.loads, results.read_text().splitlines())
    assert (tmp_path / line["pictures"][0]["file"]).read_bytes() == b"one"
    assert "pictures/0000_0.png  seed 7" in (tmp_path / "results.txt").read_text()
    page = (tmp_path / "results.html").read_text()
    assert 'src="pictures/0000_0.png"' in page
    assert "&lt;a&gt; cat" in page


def test_a_batch_that_was_ended_goes_on(tmp_path: Path) -> None:
    folder, results = tmp_path / "pictures", tmp_path / "results.jsonl"
    ended = PictureFiles(folder, results)
    ended.add("0000_0.png", b"one", SOURCE)
    ended.add("0001_0.png", b"two", SOURCE)
    (ended.partial / "0001_0.png").unlink()
    with (ended.partial / "made.jsonl").open("a") as journal:
        journal.write('["0002_0.png", {"pro')
    again = PictureFiles(folder, results)
    assert again.made_from("0000_0.png") == SOURCE
    assert again.made_from("0001_0.png") is None
    again.add("0002_0.png", b"three", SOURCE)
    assert PictureFiles(folder, results).made_from("0002_0.png") == SOURCE


def test_an_earlier_batch_stays_until_the_next_is_complete(tmp_path: Path) -> None:
    folder, results = tmp_path / "pictures", tmp_path / "results.jsonl"
    first = PictureFiles(folder, results)
    for name in ("0000_0.png", "0001_0.png"):
        first.add(name, b"old", SOURCE)
    first.publish([record(0, "pictures/0000_0.png"), record(1, "pictures/0001_0.png")])
    (folder / "of the user.png").write_bytes(b"kept")
    second = PictureFiles(folder, results)
    second.add("0000_0.png", b"new", SOURCE)
    assert (folder / "0000_0.png").read_bytes() == b"old"
    second.publish([record(0, "pictures/0000_0.png")])
    assert {path.name for path in folder.iterdir()} == {"0000_0.png", "of the user.png"}
    assert (folder / "0000_0.png").read_bytes() == b"new"


def picture(scale: float = 3.0, seed: int | None = None, **sampling: float) -> Picture:
    grid = Grid(6, 8)
    drawing = Drawing(0, "a cat", grid, Guidance(scale, "a dog"), {})
    return Picture(drawing, PictureRequest((1, 2), (3,), grid, scale), 0, seed, sampling)


@pytest.mark.parametrize(
    ("asked", "model", "seed"),
    [
        (picture(), "emu3", 7),
        (picture(seed=7), "emu3", 7),
        (picture(seed=8), "emu3", None),
        (picture(scale=2), "emu3", None),
        (picture(top_k=5), "emu3", None),
        (picture(), "other", None),
    ],
)
def test_only_the_same_picture_is_kept(tmp_path: Path, asked: Picture, model: str, seed: int | None) -> None:
    made = picture()
    PictureFiles(tmp_path / "pictures", tmp_path / "results.jsonl").add(
        made.name, b"one", {**made.source("emu3"), "seed": 7}
    )
    assert seed_made(asked, PictureFiles(tmp_path / "pictures", tmp_path / "results.jsonl"), model) == seed
