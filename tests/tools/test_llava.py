"""Shards for Energon: all samples, all mistakes at once, a kill loses one part, others' files are kept."""

import errno
import fcntl
import gzip
import io
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from flagscale.checks.energon_folder import META
from flagscale.errors import UserError
from tools.datasets import llava
from tools.datasets.pictures import energon, shards


def png(shade: int, width: int = 8, height: int = 6) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height), (shade % 256, shade // 256, 0)).save(out, "PNG")
    return out.getvalue()


def record(number: int, **others: Any) -> dict[str, Any]:
    """Return a conversation about the picture `number`; every fourth is about none."""
    turns = [
        {"from": "human", "value": f"{'<image>' if number % 4 else ''}\nWhat is {number}?"},
        {"from": "gpt", "value": f"answer {number}"},
    ]
    picture = {"image": f"some pictures/{number}.a.png"} if number % 4 else {}
    return {"id": f"sample.{number} x", **picture, "conversations": turns, **others}


def write_source(folder: Path, count: int = 23) -> Path:
    """Write `count` records, one per line, and their pictures."""
    (folder / "some pictures").mkdir(parents=True)
    for number in range(count):
        (folder / "some pictures" / f"{number}.a.png").write_bytes(png(number))
    return write_lines(folder / "conversations.jsonl", [record(number) for number in range(count)])


def write_lines(file: Path, records: list[Any]) -> Path:
    file.write_text("".join(json.dumps(one) + "\n" for one in records))
    return file


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_source(tmp_path / "in put")


@pytest.fixture
def without_energon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for Energon's own command, which takes seconds to import torch."""

    def prepare(folder: Path, counts: dict[str, int], identity: str) -> None:
        assert sorted(file.name for file in folder.glob("**/*.tar")) == sorted(counts)
        (folder / META).mkdir()
        for name in energon.FILES:
            (folder / META / name).write_text(identity + json.dumps(counts))
        for name in counts:
            (folder / f"{name}.idx").touch()

    monkeypatch.setattr(energon, "prepare", prepare)


def samples(folder: Path, split: str = "train") -> dict[str, dict[str, bytes]]:
    """Return the files of each sample, by the numbers in their names."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob(f"{split}-*.tar")):
        with tarfile.open(path) as shard:
            for member in shard:
                key, _, name = member.name.partition(".")
                content = shard.extractfile(member)
                assert content
                found.setdefault(key, {})[name] = content.read()
    return found


def content(folder: Path) -> dict[str, bytes]:
    """Return all files but the facts, which tell when the source was written."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != "facts.json")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def mistakes(caught: pytest.ExceptionInfo[UserError]) -> list[str]:
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.usefixtures("without_energon")
class TestPrepare:
    """Everything but Energon's own part."""

    def test_every_sample_is_written_with_its_pictures(self, source: Path, weird_path: Path) -> None:
        done = llava.prepare([source], weird_path / "out", valid_every=10, samples_per_shard=6)
        train, valid = samples(weird_path / "out"), samples(weird_path / "out", "val")
        assert sorted(valid) == ["000000000", "000000010", "000000020"]
        assert sorted([*train, *valid]) == [f"{number:09d}" for number in range(23)]
        for key, files in {**train, **valid}.items():
            number = int(key)
            reported = json.loads(files.pop("json"))
            assert reported["id"] == f"sample.{number} x"
            asked = {"type": "text", "text": f"What is {number}?"}
            shown = [{"type": "image"}] if number % 4 else []
            if not shown:
                asked["text"] = "\n" + asked["text"]
            assert reported["messages"][0] == {"role": "user", "content": [*shown, asked]}
            assert files == ({"image0.png": png(number)} if number % 4 else {})
        assert [path.name for path in sorted((weird_path / "out").glob("*.tar"))] == [
            *(f"train-00000{part}.tar" for part in range(4)),
            "val-000000.tar",
        ]
        assert (done.splits["train"]["samples"], done.splits["train"]["pictures"]) == (20, 16)
        assert not (weird_path / "out" / "unfinished").exists()

    def test_the_facts_tell_what_the_shards_hold(self, tmp_path: Path) -> None:
        (tmp_path / "wide.png").write_bytes(png(1, 30, 10))
        (tmp_path / "high.png").write_bytes(png(1, 10, 40))
        turns = [
            {"role": "user", "content": "<image><image>12345"},
            {"role": "assistant", "content": "67"},
        ]
        source = write_lines(
            tmp_path / "a.jsonl", [{"messages": turns, "images": ["wide.png", "high.png"]}, record(4)]
        )
        llava.prepare([source], tmp_path / "out", valid_every=0)
        facts = json.loads((tmp_path / "out" / "facts.json").read_text())
        shard = tmp_path / "out" / "train-000000.tar"
        size = shard.stat().st_size
        assert facts["splits"] == {
            "train": {
                "samples": 2, "pictures": 2, "videos": 0, "bytes": size, "most_pictures": 2, "most_videos": 0,
                "most_frames": 0, "longest_text": 19, "largest_height": 40, "largest_width": 30,
                "sizes": [[10, 30], [40, 10]],
            }
        }  # fmt: skip
        assert facts["shards"][shard.name]["bytes"] == size
        assert facts["format"] == "messages"

    def test_several_processes_and_other_folders_give_the_same_bytes(
        self, source: Path, tmp_path: Path
    ) -> None:
        llava.prepare([source], tmp_path / "one", samples_per_shard=5)
        moved = tmp_path / "moved"
        shutil.copytree(source.parent, moved)
        llava.prepare([moved / source.name], tmp_path / "two", samples_per_shard=5, processes=2)
        assert content(tmp_path / "one") == content(tmp_path / "two")

    def test_all_forms_of_a_source_give_the_same_samples(self, source: Path, tmp_path: Path) -> None:
        records = [json.loads(line) for line in source.read_text().splitlines()]
        pictures = source.parent
        array = tmp_path / "array.json"
        array.write_text(json.dumps(records, indent=2))
        for one in records:
            one["image"] = {"bytes": None, "path": one["image"]} if "image" in one else None
        parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "paths.parquet")
        for one in records:
            if one["image"]:
                one["image"] = {"bytes": (pictures / one["image"]["path"]).read_bytes(), "path": "else.jpg"}
        parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "bytes.parquet", row_group_size=4)
        llava.prepare([source], tmp_path / "lines")
        for file in (array, tmp_path / "paths.parquet", tmp_path / "bytes.parquet"):
            llava.prepare([file], tmp_path / file.stem, pictures=pictures)
            assert samples(tmp_path / file.stem) == samples(tmp_path / "lines")

    def test_all_mistakes_are_reported_at_once_with_their_places(self, source: Path, tmp_path: Path) -> None:
        good = source.read_text().splitlines()
        (source.parent / "some pictures" / "9.a.png").write_bytes(png(9)[:40])
        lines = [
            *good[:2],
            "{not json",
            json.dumps(record(3, image="none.png")),
            json.dumps({**record(1), "id": "another"}),
            "[1]",
            *good[9:],
            json.dumps({"conversations": [{"from": "humann", "value": "x"}]}),
        ]
        source.write_text("\n".join(lines) + "\n")
        with pytest.raises(UserError) as caught:
            llava.prepare([source], tmp_path / "out")
        reported = mistakes(caught)
        places = [(3, "not JSON"), (4, "none.png: no such file in "), (5, f"the same sample as {source}:2;"),
                  (6, "not a JSON object but a list"), (7, "9.a.png is not a picture, or is damaged"),
                  (21, "message 1: unknown role `humann`; did you mean `human`?")]  # fmt: skip
        assert len(reported) == len(places) + 1
        for (line, what), one in zip(places, reported, strict=False):
            assert one.startswith(f"{source}:{line}: ")
            assert what in one
        assert reported[-1].startswith("6 sample(s) with mistakes; fix them")
        assert (tmp_path / "out" / "mistakes.txt").read_text().splitlines() == reported[:-1]
        assert not (tmp_path / "out" / META).exists()

    def test_samples_with_mistakes_are_left_out_on_request_with_the_work_that_was_done(
        self,
        source: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        (source.parent / "some pictures" / "9.a.png").unlink()
        with pytest.raises(UserError, match=r"9\.a\.png: no such file"):
            llava.prepare([source], tmp_path / "out")
        monkeypatch.setattr(shards, "_write", None)
        done = llava.prepare([source], tmp_path / "out", skip_mistakes=True)
        assert (done.left_out, done.splits["train"]["samples"]) == (1, 21)
        assert "000000009" not in samples(tmp_path / "out")
        assert str(done).endswith("; 1 left out")
        assert f"1 sample(s) left out; see {tmp_path / 'out' / 'mistakes.txt'}" in capsys.readouterr().err

    def test_records_on_one_line_have_numbers(self, tmp_path: Path) -> None:
        file = tmp_path / "one line.json"
        file.write_text(json.dumps([record(0), record(4), {}, record(0)]))
        with pytest.raises(UserError) as caught:
            llava.prepare([file], tmp_path / "out")
        reported = mistakes(caught)
        assert reported[0].startswith(f"{file}:1, item 3: no `messages`")
        assert reported[1].startswith(f"{file}:1, item 4: the same sample as {file}:1, item 1;")
        file.write_text(json.dumps([record(0), record(4)])[:-9])
        with pytest.raises(UserError, match=r"one line\.json:1: not JSON"):
            llava.prepare([file], tmp_path / "out")

    def test_many_mistakes_are_shown_in_part(self, source: Path, tmp_path: Path) -> None:
        shutil.rmtree(source.parent / "some pictures")
        source.write_text("".join(json.dumps(record(4 * number + 1)) + "\n" for number in range(50)))
        with pytest.raises(UserError) as caught:
            llava.prepare([source], tmp_path / "out")
        reported = mistakes(caught)
        assert len(reported) == 22
        assert reported[20] == f"and 30 more, all in {tmp_path / 'out' / 'mistakes.txt'}"

    def test_a_fixed_source_makes_only_the_parts_anew_that_changed(
        self, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        whole, broken = png(9), source.parent / "some pictures" / "9.a.png"
        broken.write_bytes(whole[:40])
        with pytest.raises(UserError, match=r"9\.a\.png is not a picture"):
            llava.prepare([source], tmp_path / "out", samples_per_shard=4)
        broken.write_bytes(whole)
        llava.prepare([source], tmp_path / "out", samples_per_shard=4)
        assert "reusing 6 part(s) of an earlier run" in capsys.readouterr().err
        llava.prepare([source], tmp_path / "whole", samples_per_shard=4)
        assert content(tmp_path / "out").keys() - content(tmp_path / "whole").keys() == {"mistakes.txt"}
        assert samples(tmp_path / "out") == samples(tmp_path / "whole")

    def test_a_second_call_does_nothing(self, source: Path, tmp_path: Path) -> None:
        first = llava.prepare([source], tmp_path / "out")
        before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")}
        second = llava.prepare([source], tmp_path / "out")
        assert (first.made_now, second.made_now) == (True, False)
        assert first.splits == second.splits
        assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "out").rglob("*")}

    @pytest.mark.parametrize("finished", [True, False])
    def test_other_settings_are_refused_without_overwrite(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: bool
    ) -> None:
        if finished:
            llava.prepare([source], tmp_path / "out")
        else:
            interrupted(monkeypatch, lambda: llava.prepare([source], tmp_path / "out"))
        before = content(tmp_path / "out")
        with pytest.raises(UserError, match=r"valid_every 50 \(now 5\).*--overwrite"):
            llava.prepare([source], tmp_path / "out", valid_every=5)
        assert content(tmp_path / "out") == before
        assert llava.prepare([source], tmp_path / "out", valid_every=5, overwrite=True).made_now
        assert len(samples(tmp_path / "out", "val")) == 5

    def test_a_source_that_changed_after_the_end_is_refused(self, source: Path, tmp_path: Path) -> None:
        llava.prepare([source], tmp_path / "out")
        write_lines(source, [record(number) for number in range(22)])
        with pytest.raises(UserError, match="made with other settings: content"):
            llava.prepare([source], tmp_path / "out")
        other = write_lines(tmp_path / "other.jsonl", [record(0)])
        with pytest.raises(UserError, match="source"):
            llava.prepare([other], tmp_path / "out")

    @pytest.mark.parametrize("name", ["train-000002.tar", ".nv-meta/split.yaml", "val-000000.tar.idx"])
    def test_damaged_output_is_remade(
        self, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
    ) -> None:
        llava.prepare([source], tmp_path / "out", samples_per_shard=4)
        before = content(tmp_path / "out")
        (tmp_path / "out" / name).unlink()
        assert llava.prepare([source], tmp_path / "out", samples_per_shard=4).made_now
        assert f"{tmp_path / 'out' / name}: missing or damaged" in capsys.readouterr().err
        assert content(tmp_path / "out") == before

    def test_a_restart_reuses_complete_parts_and_remakes_damaged_ones(
        self,
        source: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        llava.prepare([source], tmp_path / "whole", samples_per_shard=4)
        interrupted(monkeypatch, lambda: llava.prepare([source], tmp_path / "out", samples_per_shard=4), 4)
        unfinished = tmp_path / "out" / "unfinished"
        assert len(list(unfinished.glob("*.tar"))) == 4
        (unfinished / "train-000001.tar").write_bytes(b"lost in a power cut")
        (unfinished / "train-000004.7.tmp").touch()
        (unfinished / "train-000009.tar").touch()  # of a longer source
        llava.prepare([source], tmp_path / "out", samples_per_shard=4)
        assert content(tmp_path / "out") == content(tmp_path / "whole")
        assert "reusing 3 part(s) of an earlier run" in capsys.readouterr().err

    @pytest.mark.parametrize("moved", range(9))
    def test_a_run_that_ends_between_two_renames_can_be_continued(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: int
    ) -> None:
        llava.prepare([source], tmp_path / "whole", samples_per_shard=10)
        output, real, count = tmp_path / "out", os.replace, 0

        def replace(temporary: Path, target: Path) -> None:
            nonlocal count
            if Path(target).parent == output:
                if count == moved:
                    raise KeyboardInterrupt
                count += 1
            real(temporary, target)

        monkeypatch.setattr(os, "replace", replace)
        with suppress(KeyboardInterrupt):
            llava.prepare([source], output, samples_per_shard=10)
        assert (count, (output / META).exists()) == (moved, False)
        monkeypatch.setattr(os, "replace", real)
        llava.prepare([source], output, samples_per_shard=10)
        assert content(output) == content(tmp_path / "whole")

    @pytest.mark.parametrize("name", [".nv-meta", "train-000000.tar"])
    def test_files_from_elsewhere_are_left_alone(self, source: Path, tmp_path: Path, name: str) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / name).write_bytes(b"precious")
        with pytest.raises(UserError, match="not made by this tool"):
            llava.prepare([source], tmp_path / "out")
        assert content(tmp_path / "out") == {name: b"precious"}

    def test_a_busy_folder_is_refused(self, source: Path, tmp_path: Path) -> None:
        descriptor = os.open(tmp_path, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            with pytest.raises(UserError, match="another process is preparing data here"):
                llava.prepare([source], tmp_path)
        finally:
            os.close(descriptor)

    def test_a_source_that_changes_during_the_run_is_reported(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        answers = iter(["before", "after"])
        monkeypatch.setattr(llava, "content_of", lambda _: next(answers))
        with pytest.raises(UserError, match="changed while it was being read"):
            llava.prepare([source], tmp_path / "out")

    def test_a_full_disk_leaves_no_half_of_a_part(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(shards, "put_in_place", full)
            with pytest.raises(OSError, match="No space left"):
                llava.prepare([source], tmp_path / "out")
        assert [file.name for file in (tmp_path / "out" / "unfinished").iterdir()] == ["request.json"]

    def test_a_source_without_training_samples_is_refused(self, source: Path, tmp_path: Path) -> None:
        write_lines(source, [record(1)])
        with pytest.raises(UserError, match="the only sample went to the split `val`; use --valid-every 0"):
            llava.prepare([source], tmp_path / "out")
        write_lines(source, [])
        with pytest.raises(UserError, match="no sample, so there is nothing to train on"):
            llava.prepare([source], tmp_path / "empty")


def interrupted(patch: pytest.MonkeyPatch, call: Callable[[], object], parts: int = 1) -> None:
    """Interrupt a preparation after this many parts."""
    from tools.datasets.pictures import writers

    real, count = shards.write_part, 0

    def write(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count > parts:
            raise KeyboardInterrupt
        return real(*arguments)

    with patch.context() as inner:
        inner.setattr(writers, "write_part", write)
        inner.setattr(energon, "prepare", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            call()


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--source", "none.json", "--output", "out"], "none.json: no such file or folder"),
        (["--source", "text.txt", "--output", "out"], r"text.txt: not one of .jsonl"),
        (
            ["--source", "cut.parquet", "--output", "out"],
            "cut.parquet: its name says Parquet, but it is text",
        ),
        (["--source", "empty", "--output", "out"], "empty: no file ends in"),
        (["--source", "cut.jsonl.gz", "--output", "out"], "cut.jsonl.gz: damaged or truncated gzip data"),
        (
            ["--source", "cut.jsonl.gz", "none.json", "--output", "out"],
            "(?s)cut.jsonl.gz.*none.json: no such",
        ),
        (["--source", ".", "--output", "."], r"--output \.: is the source"),
        (["--source", "a.jsonl", "--output", "out", "--pictures", "no"], "no: no such folder; --pictures"),
        (["--source", "a.jsonl", "--output", "a.jsonl"], "a.jsonl: is not a folder"),
        (["--source", "a.jsonl", "--output", "a.jsonl/data"], "a.jsonl: is not a folder"),
        (["--source", "a.jsonl", "--output", "out", "--valid-every", "1"], "--valid-every 1: must be 2"),
        (["--source", "a.jsonl", "--output", "out", "--processes", "0"], "--processes 0: must be 1"),
    ],
)
def test_mistakes_on_the_command_line_are_told_in_words(
    arguments: list[str], what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "a.jsonl", [record(0)])
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "cut.parquet").write_text("x")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b"x")[:-9])
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr(sys, "argv", ["llava.py", *arguments])
    with pytest.raises(UserError, match=what):
        llava.main()
    assert not (tmp_path / "out").exists()
