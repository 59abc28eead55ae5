"""The files of a batch of pictures: written one by one, kept over a restart, and put in place together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from flagscale.files import write_atomic
from vllm_flagscale.emu3.contact_sheet import page

_JOURNAL = "made.jsonl"


class PictureFiles:
    """A folder of pictures beside the file of the results.

    Until the batch is complete, its pictures are in `FOLDER.partial`, each of them whole, with a journal of
    what they were made from. A batch that is started again keeps those that it would make again. The pictures
    of an earlier batch, and the results that name them, stay as they were until then.
    """

    def __init__(self, folder: Path, results: Path) -> None:
        """Make the folder of a batch that begins, or goes on; raises OSError.

        Args:
            folder: for the finished pictures; beside `results`.
            results: the file of the results; a text and a page for people get names of the same stem.
        """
        self._folder, self._results = folder, results
        self.partial = folder.with_name(f"{folder.name}.partial")
        self.partial.mkdir(parents=True, exist_ok=True)
        self._journal = self.partial / _JOURNAL
        self._made = self._read()
        # A batch that was killed may have left half a line, which must not be continued.
        lines = (json.dumps(entry, ensure_ascii=False) + "\n" for entry in self._made.items())
        write_atomic(self._journal, "".join(lines))

    def _read(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        with suppress(FileNotFoundError):
            for line in self._journal.read_text(encoding="utf-8").splitlines():
                with suppress(ValueError):  # the last line may be incomplete
                    name, source = json.loads(line)
                    found[name] = source
        return {name: source for name, source in found.items() if (self.partial / name).is_file()}

    def made_from(self, name: str) -> Mapping[str, Any] | None:
        """Return what a picture of this batch was made from, as given to `add`; None if it is not there."""
        return self._made.get(name)

    def add(self, name: str, png: bytes, source: Mapping[str, Any]) -> None:
        """Write a finished picture. `source`, which JSON can hold, is all that the picture depends on."""
        write_atomic(self.partial / name, png)
        with self._journal.open("a", encoding="utf-8") as journal:
            journal.write(json.dumps([name, source], ensure_ascii=False) + "\n")
        self._made[name] = source

    def publish(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Put the pictures of a complete batch in place, then its results; remove those of an earlier batch.

        Each record has `pictures`, whose `file` is relative to the results.
        """
        folder = self._results.parent
        earlier = _files_of(self._results)
        self._folder.mkdir(exist_ok=True)
        files = [picture["file"] for record in records for picture in record["pictures"]]
        for file in files:
            (self.partial / Path(file).name).replace(folder / file)
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        write_atomic(self._results.with_suffix(".txt"), readable(records))
        write_atomic(self._results.with_suffix(".html"), page(self._results.stem, records))
        write_atomic(self._results, "".join(lines))
        for file in earlier - {*files}:
            (folder / file).unlink(missing_ok=True)
        shutil.rmtree(self.partial)

    def file_of(self, name: str) -> str:
        """Return the path of a finished picture, relative to the results."""
        return f"{self._folder.name}/{name}"


def _files_of(results: Path) -> set[str]:
    """Return the pictures that the results of an earlier batch name; empty if they are of another kind."""
    try:
        records = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
        return {picture["file"] for record in records for picture in record["pictures"]}
    except (OSError, ValueError, TypeError, KeyError):
        return set()


def readable(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the results as text for people."""
    pieces = []
    for record in records:
        about = f"{record['size']}, guidance scale {record['guidance_scale']:g}"
        pieces.append(f"=== {record['index']}\n{record['prompt']}\n--- {about}")
        pieces += [f"{picture['file']}  seed {picture['seed']}" for picture in record["pictures"]]
    return "\n".join(pieces) + "\n"
