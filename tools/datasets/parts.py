"""Encode documents in parts of a fixed number, and merge the parts into Megatron's files.

A part is written to a temporary folder and renamed once complete, so a restart reuses complete parts.
"""

import functools
import gc
import itertools
import logging
import shutil
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from flagscale.checks import indexed
from flagscale.checks.facts import write_facts
from flagscale.errors import UserError
from flagscale.files import put_in_place
from tools.datasets.folders import read_json, write_json
from tools.datasets.output import TEXT, TRAIN, VALID, OutputFolder
from tools.progress import Progress

_BATCH = 256  # documents encoded at once: enough to keep all threads of the tokenizer busy
_ABOUT = "about.json"


class Sized(Protocol):
    """A document of any form."""

    @property
    def size(self) -> int:
        """The bytes of its file that were read for it, by which progress is measured."""


class Encoder[T: Sized](Protocol):
    """What makes sequences of documents."""

    unit: str
    """What the documents are called."""

    @property
    def dtypes(self) -> Mapping[str, str]:
        """The kinds of pairs (`OutputFolder.kinds`) that a document becomes a part of, and their types."""

    def encode(self, documents: Sequence[T]) -> Iterable[Mapping[str, Sequence[int]] | None]:
        """Return each document's sequence for each kind; None if it is left out."""

    def about(self) -> Any:
        """Return what to keep (as JSON) of the documents since the last call; None if nothing."""


def write_parts[T: Sized](
    layout: OutputFolder,
    documents: Iterable[T],
    encoder: Encoder[T],
    *,
    valid_every: int,
    documents_per_part: int,
    total: int,
) -> None:
    """Encode every part that does not exist yet; `total`: the bytes of all documents."""
    megatron()  # before the clock starts
    reused = 0
    with Progress(total) as progress:
        for number, batch in enumerate(itertools.batched(documents, documents_per_part)):
            if _is_sound(layout, layout.part(number)):
                reused += 1
                progress.advance(sum(document.size for document in batch))
            else:
                first = number * documents_per_part
                _write_part(layout, layout.part(number), batch, first, encoder, valid_every, progress)
    if reused:
        print(f"reusing {reused} part(s) of an earlier run", file=sys.stderr)


def about_parts(layout: OutputFolder) -> list[Any]:
    """Return what the encoder kept of each part, in order."""
    return [read_json(part / _ABOUT) for part in layout.complete_parts()]


def _write_part[T: Sized](
    layout: OutputFolder,
    part: Path,
    documents: Sequence[T],
    first: int,
    encoder: Encoder[T],
    valid_every: int,
    progress: Progress,
) -> None:
    """Write the documents from number `first` on; `part` appears complete or not at all."""
    temporary = part.with_name(part.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(part, ignore_errors=True)  # a damaged one
    temporary.mkdir()
    prefixes = {(split, kind): prefix for split, kind, prefix in layout.pairs_in(temporary)}
    builders: dict[tuple[str, str], Any] = {}
    for start in range(0, len(documents), _BATCH):
        batch = documents[start : start + _BATCH]
        tokens = 0
        for number, sequences in enumerate(encoder.encode(batch), first + start):
            split = VALID if valid_every and number % valid_every == 0 else TRAIN
            for kind, values in (sequences or {}).items():
                key = split, kind
                if key not in builders:
                    builders[key] = _builder(prefixes[key], encoder.dtypes[kind])
                builders[key].add_document(values, [len(values)])
            tokens += len(sequences[TEXT]) if sequences else 0
        read = sum(document.size for document in batch)
        progress.advance(read, **{encoder.unit: len(batch), "tokens": tokens})
    for key, builder in builders.items():
        builder.finalize(str(indexed.idx_path(prefixes[key])))
    if (about := encoder.about()) is not None:
        write_json(temporary / _ABOUT, about)
    temporary.rename(part)


def merge(layout: OutputFolder, known: Mapping[str, Any]) -> dict[str, indexed.Summary]:
    """Merge the parts of each split, move them to their final names, and write their facts."""
    merged: dict[tuple[str, str], list[Path]] = {}
    for part in layout.complete_parts():
        for split, kind, prefix in layout.pairs_in(part):
            if indexed.idx_path(prefix).exists():
                merged.setdefault((split, kind), []).append(prefix)
    if (TRAIN, TEXT) not in merged:
        raise UserError(
            "the only document went to the validation text; choose a larger --source, or --valid-every 0"
        )
    for (split, kind), prefixes in merged.items():
        _merge_pair(prefixes, layout.merged(split, kind))
    return {split: _finish(layout, split, known) for split in (TRAIN, VALID) if (split, TEXT) in merged}


def _merge_pair(parts: list[Path], merged: Path) -> None:
    builder = _builder(merged, indexed.summary(parts[0]).dtype)
    gc.freeze()  # add_index collects garbage for each part; without torch's many objects this takes no time
    for part in parts:
        builder.add_index(str(part))
    gc.unfreeze()
    builder.finalize(str(indexed.idx_path(merged)))
    if problems := indexed.problems(merged, thorough=True):
        raise RuntimeError("the merged data is damaged: " + "; ".join(problems))


def _finish(layout: OutputFolder, split: str, known: Mapping[str, Any]) -> indexed.Summary:
    """Move the pairs of a split to their final names, the text last; write its facts."""
    from megatron.flagscale.id_range import id_range

    _, largest_id = id_range(layout.merged(split, TEXT))
    layout.remove_index_cache(split)
    for kind in sorted(layout.kinds, key=lambda kind: kind == TEXT):
        for path in (indexed.bin_path, indexed.idx_path):
            put_in_place(path(layout.merged(split, kind)), path(layout.prefix(split, kind)))
    final = layout.prefix(split)
    summary = indexed.summary(final)
    write_facts(final, {**asdict(summary), "largest_id": largest_id, **known})
    return summary


def _is_sound(layout: OutputFolder, part: Path) -> bool:
    """Return whether this part is complete; one that has lost bytes since (in a power cut) is remade."""
    pairs = [prefix for *_, prefix in layout.pairs_in(part) if indexed.idx_path(prefix).exists()]
    is_written = bool(pairs) or (part / _ABOUT).is_file()
    return is_written and not any(indexed.problems(prefix) for prefix in pairs)


def dtype_of(vocabulary: int) -> str:
    """Return the smallest type for the ids of a vocabulary, as Megatron itself would choose it."""
    return str(megatron().DType.optimal_dtype(vocabulary).__name__)


def _builder(prefix: Path, dtype: str) -> Any:
    """Return megatron-core's own writer, so that the format is right by construction."""
    library = megatron()
    return library.IndexedDatasetBuilder(str(indexed.bin_path(prefix)), dtype=getattr(library.numpy, dtype))


@functools.cache
def megatron() -> Any:
    """Import megatron-core late (5 s, with torch), without its warnings about optional GPU libraries."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="Could not determine rank")  # this is the only process
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron.core.datasets import indexed_dataset
    return indexed_dataset
