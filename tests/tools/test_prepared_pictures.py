"""Folders that Energon itself prepared: after a kill, of the demo, and as a page shows them."""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path

import pytest

from flagscale.errors import UserError
from flagscale.run.env import import_path
from flagscale_testing.pictures import write_tokenizer
from tools.datasets import llava, pictures_demo, show_pictures
from tools.datasets.pictures.drawing import Drawn

ROOT = Path(__file__).resolve().parents[2]


def keys(folder: Path) -> list[str]:
    """Return the names of the samples in the shards of the split `train`."""
    names: set[str] = set()
    for path in folder.glob("train-*.tar"):
        with tarfile.open(path) as shard:
            names |= {name.partition(".")[0] for name in shard.getnames()}
    return sorted(names)


def write_source(folder: Path, count: int) -> Path:
    """Write conversations without pictures, one per line."""
    folder.mkdir()
    file = folder / "conversations.jsonl"
    turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]
    lines = [json.dumps({"conversations": turns, "number": number}) for number in range(count)]
    file.write_text("\n".join(lines))
    return file


STUCK = """
import signal, sys
from tools.datasets import llava
from tools.datasets.pictures import shards
real = shards._write
def write(file, samples, settings):
    if samples[0].number == 30:
        file.write(b"half of a shard")
        file.flush()
        signal.pause()
    return real(file, samples, settings)
shards._write = write
if __name__ == "__main__":
    sys.exit(llava.main())
"""
"""A preparation that stops in the middle of its fourth part."""


def test_a_killed_run_continues_to_what_energon_reads(tmp_path: Path) -> None:
    source, output = write_source(tmp_path / "in", 60), tmp_path / "out"
    script = tmp_path / "stuck.py"
    script.write_text(STUCK)
    command = [sys.executable, str(script), "--source", str(source), "--output", str(output)]
    command += ["--samples-per-shard", "10", "--valid-every", "0", "--processes", "2"]
    unfinished = output / "unfinished"
    environment = {**os.environ, "PYTHONPATH": import_path(str(ROOT))}
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        while not (len(list(unfinished.glob("*.tar"))) == 5 and any(unfinished.glob("*-000003.*.tmp"))):
            assert process.poll() is None
            time.sleep(0.1)
        with pytest.raises(UserError, match="another process"):
            llava.prepare([source], output, valid_every=0, samples_per_shard=10)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    llava.prepare([source], output, valid_every=0, samples_per_shard=10)
    assert keys(output) == [f"{number:09d}" for number in range(60)]
    counts = {f"train-00000{part}.tar": 10 for part in range(6)}
    assert json.loads((output / ".nv-meta" / ".info.json").read_text())["shard_counts"] == counts
    assert "CrudeWebdataset" in (output / ".nv-meta" / "dataset.yaml").read_text()
    assert read_by_energon(output) == keys(output)


def read_by_energon(folder: Path) -> list[str]:
    """Return the names of the samples that Energon reads."""
    from tools.datasets.pictures.samples import crude_samples

    return sorted(files["__key__"] for files in crude_samples(folder, "train", 1000, seed=0))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of 60 drawn pictures, prepared for Energon."""
    output = tmp_path_factory.mktemp("demo") / "out put"
    pictures_demo.draw(output, samples=60, side=28, valid_every=10)
    return output


@pytest.mark.slow
def test_the_demo_asks_what_its_pictures_show(demo: Path) -> None:
    written = json.loads((demo / "conversations.json").read_text())
    kinds = Counter(one["id"].partition("-")[0] for one in written)
    assert kinds == {"counts": 15, "colours": 15, "shapes": 15, "digits": 15}
    answers = Counter(one["conversations"][1]["value"] for one in written if one["id"].startswith("shapes"))
    assert answers == {"circle": 5, "square": 5, "triangle": 5}, "no answer is more frequent"
    assert len({(demo / one["image"]).read_bytes() for one in written}) == 60
    held_out = {one["id"].partition("-")[0] for one in written[::10]}
    assert len(held_out) > 2
    assert len(read_by_energon(demo / "energon")) == 54


def test_a_second_demo_does_nothing_and_another_is_refused(demo: Path) -> None:
    assert not pictures_demo.draw(demo, samples=60, side=28, valid_every=10).made_now
    with pytest.raises(UserError, match=r"samples 60 \(now 61\)"):
        pictures_demo.draw(demo, samples=61, side=28, valid_every=10)
    with pytest.raises(UserError, match="--kinds count: unknown; did you mean `counts`"):
        pictures_demo.draw(demo, kinds=("count",))


def test_a_demo_that_was_interrupted_is_drawn_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object, **options: object) -> Drawn:
        if arguments[2] == 3:
            raise KeyboardInterrupt
        return real(*arguments, **options)  # type: ignore[arg-type]

    real = pictures_demo.drawn
    monkeypatch.setattr(llava, "prepare", lambda *_, **__: "prepared")
    monkeypatch.setattr(pictures_demo, "drawn", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pictures_demo.draw(tmp_path, samples=20, side=28)
    monkeypatch.setattr(pictures_demo, "drawn", real)
    assert pictures_demo.draw(tmp_path, samples=20, side=28) == "prepared"
    assert len(list((tmp_path / "pictures").iterdir())) == 20
    before = (tmp_path / "conversations.json").stat().st_mtime_ns
    pictures_demo.draw(tmp_path, samples=20, side=28)
    assert (tmp_path / "conversations.json").stat().st_mtime_ns == before


def test_a_demo_leaves_pictures_from_elsewhere_alone(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(UserError, match="pictures: not made by this tool"):
        pictures_demo.draw(tmp_path, samples=4)
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_the_page_shows_pictures_tokens_and_masks(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def show(data: Path) -> int:
        arguments = ["--data", data, "--tokenizer", tokenizer, "--output", output, "--vision-image-size", 28]
        monkeypatch.setattr(sys, "argv", ["show_pictures.py", *map(str, arguments), "--samples", "5"])
        return show_pictures.main()

    tokenizer, output = write_tokenizer(tmp_path / "tokenizer"), tmp_path / "page.html"
    with pytest.raises(UserError, match="no Energon folder; did you mean"):
        show(demo)
    assert not output.exists()
    assert show(demo / "energon") == 0
    assert capsys.readouterr().out == f"{output}: 5 samples\n"
    text = output.read_text()
    assert text.count("<section>") == text.count("data:image/jpeg;base64,") == 5
    assert text.count("&lt;image&gt; &times; 4<") == 5
    assert "28 x 28, 1 tile(s)" in text
    written = {
        one["conversations"][1]["value"] for one in json.loads((demo / "conversations.json").read_text())
    }
    for section in text.split("<section>")[1:]:
        learnt = "".join(re.findall(r'<span class="learnt">([^<]*)</span>', section))
        assert learnt.removesuffix("&lt;|im_end|&gt;") in written
