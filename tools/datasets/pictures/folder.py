"""The contents of a folder of shards that is prepared for Energon, and the facts about it.

`facts.json` lists the shards and what they hold. `unfinished/` holds the parts of a run that has not ended.
"""

import hashlib
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from flagscale.checks.energon_folder import FACTS, META, UNFINISHED
from flagscale.errors import UserError
from flagscale.files import put_in_place
from tools.datasets.folders import read_json, refuse_other, write_json
from tools.datasets.pictures import energon
from tools.datasets.pictures.reading import TRAIN
from tools.datasets.pictures.shards import Stored, shard_path

VERSION = 1
_MOST_SIZES = 4096
_LARGEST = ("most_pictures", "most_videos", "most_frames", "longest_text")
_SHARD = re.compile(r"(train|val)-\d{6}\.tar(\.idx)?")
_MAY_CHANGE = ("content", "skip_mistakes")
"""Settings that an unfinished folder may change: each part is compared with its own records."""


class Finished(NamedTuple):
    """What a prepared folder holds."""

    splits: dict[str, dict[str, Any]]
    left_out: int
    made_now: bool

    def __str__(self) -> str:
        parts = " + ".join(f"{name} {held['samples']:,}" for name, held in self.splits.items())
        samples, pictures, videos, size = (
            sum(held[key] for held in self.splits.values())
            for key in ("samples", "pictures", "videos", "bytes")
        )
        summary = f"{samples:,} samples ({parts}), {pictures:,} pictures"
        summary += f", {videos:,} videos" if videos else ""
        return f"{summary}, {size / 1e6:.1f} MB" + (f"; {self.left_out:,} left out" if self.left_out else "")


class PictureFolder:
    """The only place that knows the names of files in the folder."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.facts = output / FACTS
        self.mistakes = output / "mistakes.txt"
        self.unfinished = output / UNFINISHED
        self._request = self.unfinished / "request.json"
        self._meta = output / META

    def finished(self, request: Mapping[str, Any]) -> Finished | None:
        """Return what the folder holds if it was finished with this request; None if there is work to do.

        Raises:
            UserError: it was made with other settings, or by another tool.
        """
        facts = read_json(self.facts)
        if self._meta.exists() and facts is not None:
            refuse_other(self.output, facts["request"], dict(request))
            if not (lost := self._lost(facts["shards"])):
                shutil.rmtree(self.unfinished, ignore_errors=True)  # left by a kill after everything was done
                return Finished(facts["splits"], facts["left_out"], made_now=False)
            print(f"{self.output / lost[0]}: missing or damaged; remaking the data", file=sys.stderr)
            self.discard()
        begun = read_json(self._request)
        if begun is None:
            if strangers := [self._meta.name] * self._meta.exists() + self._shards():
                raise UserError(
                    f"{self.output / strangers[0]}: not made by this tool; choose another --output, or "
                    "--overwrite it"
                )
        elif any(self.unfinished.glob("*.tar")) or self._shards():
            kept = {key: value for key, value in request.items() if key not in _MAY_CHANGE}
            refuse_other(self.output, {key: begun.get(key) for key in kept}, kept)
        return None

    def begin(self, request: Mapping[str, Any]) -> None:
        """Make room for the parts; take back those that a killed run had moved already."""
        self.unfinished.mkdir(exist_ok=True)
        for name in self._shards():
            (self.output / name).replace(self.unfinished / name)
        for file in self.unfinished.glob("*.tmp"):
            file.unlink()
        shutil.rmtree(self.unfinished / META, ignore_errors=True)
        write_json(self._request, request)

    def finish(self, parts: list[Stored], request: Mapping[str, Any], left_out: int) -> Finished:
        """Let Energon prepare the parts, write the facts, and move everything to its final name.

        Raises:
            UserError: there is no sample to train on.
        """
        parts = sorted(part for part in parts if part.samples)
        names = [shard_path(self.unfinished, part.name).name for part in parts]
        splits = _summaries(parts)
        if TRAIN not in splits:
            what = "the only sample went to the split `val`; use --valid-every 0" if splits else "no sample"
            raise UserError(f"{what}, so there is nothing to train on")
        for file in self.unfinished.iterdir():
            if _SHARD.fullmatch(file.name) and file.name not in names:  # of other parts than this time
                file.unlink()
        counts = {name: part.samples for name, part in zip(names, parts, strict=True)}
        identity = hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest()
        energon.prepare(self.unfinished, counts, identity)
        for name in names:
            for moved in (name, f"{name}.idx"):
                put_in_place(self.unfinished / moved, self.output / moved)
        shards = {
            name: {"samples": part.samples, "bytes": part.bytes, "sha256": part.sha256}
            for name, part in zip(names, parts, strict=True)
        }
        write_json(
            self.facts,
            {
                "version": VERSION,
                "format": "messages",
                "splits": splits,
                "left_out": left_out,
                "shards": shards,
                "request": request,
            },
        )
        (self.unfinished / META).rename(self._meta)
        shutil.rmtree(self.unfinished)
        return Finished(splits, left_out, made_now=True)

    def discard(self) -> None:
        """Remove what this tool made; first that without which Energon opens nothing."""
        shutil.rmtree(self._meta, ignore_errors=True)
        for file in (self.facts, self.mistakes, *(self.output / name for name in self._shards())):
            file.unlink(missing_ok=True)
        shutil.rmtree(self.unfinished, ignore_errors=True)

    def _shards(self) -> list[str]:
        return sorted(file.name for file in self.output.iterdir() if _SHARD.fullmatch(file.name))

    def _lost(self, shards: Mapping[str, Any]) -> list[str]:
        """Return the names of shards that are missing or have another size, and of missing indices."""
        wrong = []
        for name, held in shards.items():
            file = self.output / name
            if not file.is_file() or file.stat().st_size != held["bytes"]:
                wrong.append(name)
            elif not file.with_suffix(".tar.idx").is_file():
                wrong.append(f"{name}.idx")
        meta = [f"{META}/{name}" for name in energon.FILES if not (self._meta / name).is_file()]
        return wrong + meta


def _summaries(parts: list[Stored]) -> dict[str, dict[str, Any]]:
    """Return what each split holds."""
    splits: dict[str, list[Stored]] = {}
    for part in parts:
        splits.setdefault(part.name.partition("-")[0], []).append(part)
    return {split: _summary(held) for split, held in splits.items()}


def _summary(parts: list[Stored]) -> dict[str, Any]:
    sizes = sorted({(height, width) for part in parts for height, width in part.sizes})
    totals = {
        key: sum(getattr(part, key) for part in parts) for key in ("samples", "pictures", "videos", "bytes")
    }
    largest = {key: max(getattr(part, key) for part in parts) for key in _LARGEST}
    return {
        **totals,
        **largest,
        "largest_height": max((height for height, _ in sizes), default=0),
        "largest_width": max((width for _, width in sizes), default=0),
        "sizes": [list(size) for size in sizes] if len(sizes) <= _MOST_SIZES else None,
    }
