"""The contents of a folder of tokenized text, and the names of its files."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flagscale.checks import indexed
from flagscale.checks.facts import facts_path

TRAIN, VALID = "train", "valid"
TEXT, LOSS_MASK = "text_document", "loss_mask_document"
"""Kinds of pairs: the ids of documents, and for each of them whether it is learnt."""


@dataclass(frozen=True)
class Prepared:
    """The contents of the output folder."""

    splits: dict[str, indexed.Summary]
    made_now: bool
    """False if everything was up to date."""

    def __str__(self) -> str:
        parts = " + ".join(f"{name} {held.documents:,}" for name, held in self.splits.items())
        documents, tokens, size = (
            sum(getattr(held, field) for held in self.splits.values())
            for field in ("documents", "tokens", "size")
        )
        return f"{documents:,} documents ({parts}), {tokens:,} tokens, {size / 1e6:.1f} MB"


@dataclass(frozen=True)
class OutputFolder:
    """The only place that knows the file names below the output folder."""

    output: Path
    kinds: tuple[str, ...] = (TEXT,)
    """The pairs of each split: the text, and pairs that describe its tokens."""
    extras: tuple[str, ...] = ()
    """Names of files about all pairs."""

    def prefix(self, split: str, kind: str = TEXT) -> Path:
        return self.output / f"{split}_{kind}"

    @property
    def record(self) -> Path:
        return self.output / f"{TEXT}.json"

    @property
    def mistakes(self) -> Path:
        """The list of mistakes in the source; beside unfinished parts, it means that they were refused."""
        return self.output / "mistakes.txt"

    @property
    def parts(self) -> Path:
        return self.output / f"{TEXT}.parts"

    @property
    def request(self) -> Path:
        return self.parts / "request.json"

    def part(self, number: int) -> Path:
        return self.parts / f"{number:06d}"

    def complete_parts(self) -> list[Path]:
        """Return the complete parts in the order of their documents; an incomplete part has a suffix."""
        return sorted(path for path in self.parts.iterdir() if path.is_dir() and not path.suffix)

    def pairs_in(self, part: Path) -> Iterator[tuple[str, str, Path]]:
        """Yield the split, the kind and the prefix of each pair that a part may have."""
        for split in (TRAIN, VALID):
            for kind in self.kinds:
                yield split, kind, part / f"{split}_{kind}"

    def merged(self, split: str, kind: str) -> Path:
        """Return the prefix of a split whose parts are being merged."""
        return self.parts / f"{split}_{kind}.merged"

    def files(self) -> list[Path]:
        """Return all final files in a safe order of deletion: facts, then an index, then its tokens."""
        prefixes = [self.prefix(split, kind) for kind in self.kinds for split in (TRAIN, VALID)]
        kinds = (facts_path, indexed.idx_path, indexed.bin_path)
        pairs = [path(prefix) for path in kinds for prefix in prefixes]
        return [self.record, *(self.output / name for name in self.extras), *pairs]

    def remove_index_cache(self, split: str) -> None:
        """Remove the indices that Megatron keeps in a folder with the name of the prefix.

        Their names depend on settings and not on the data, so Megatron would use them for new data too.
        """
        cache = self.prefix(split) / "cache"
        for indices in cache.glob("*_indices"):
            shutil.rmtree(indices)
        for folder in (cache, self.prefix(split)):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def discard(self) -> None:
        """Remove everything that a preparation makes."""
        for file in self.files():
            file.unlink(missing_ok=True)
        for split in (TRAIN, VALID):
            self.remove_index_cache(split)
        shutil.rmtree(self.parts, ignore_errors=True)
        self.mistakes.unlink(missing_ok=True)
