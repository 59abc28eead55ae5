"""Tokenize documents in parts of a fixed number, and merge the parts into Megatron's files.

A part is written to a temporary folder and renamed once complete, so a restart reuses complete parts.
"""

import functools
import gc
import itertools
import logging
import shutil
import sys
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flagscale.checks import indexed
from flagscale.checks.facts import write_facts
from flagscale.errors import UserError
from flagscale.files import put_in_place
from megatron.flagscale.tokenizer import OpenTokenizer, comparison, ids_of, open_tokenizer
from tools.datasets.documents import Document, Source, skipped_notice
from tools.datasets.output import TRAIN, VALID, OutputFolder
from tools.progress import Progress

_BATCH = 256  # documents encoded at once: enough to keep all threads of the tokenizer busy
_COMPARED, _COMPARED_CHARACTERS = 8, 4000
"""Documents, and characters of each, on which the class and the file of a tokenizer are compared."""
_SAMPLE_CHARACTERS = 200


def write_parts(
    layout: OutputFolder, source: Source, tokenizer: Path, valid_every: int, documents_per_part: int
) -> dict[str, Any]:
    """Tokenize every part that does not exist yet; return what the tokenizer adds to the facts of the data.

    Raises UserError if the class of the tokenizer gives the first documents other ids than its file.
    """
    opened = open_tokenizer(tokenizer)
    skipped: list[Path] = []
    documents = source.documents(skipped.append)
    first_documents = list(itertools.islice(documents, _COMPARED))
    compared = "\n".join(document.text[:_COMPARED_CHARACTERS] for document in first_documents)
    if differs := comparison(tokenizer, compared):
        raise UserError(differs)
    _megatron()  # before the clock starts
    reused = 0
    with Progress(source.size()) as progress:
        batches = itertools.batched(itertools.chain(first_documents, documents), documents_per_part)
        for number, batch in enumerate(batches):
            if _sound_part(layout.part(number)):
                reused += 1
                progress.advance(sum(document.size for document in batch))
            else:
                first = number * documents_per_part
                _write_part(layout.part(number), batch, first, opened, valid_every, progress)
    if reused:
        print(f"reusing {reused} part(s) of an earlier run", file=sys.stderr)
    if skipped:
        print(skipped_notice(skipped), file=sys.stderr)
    text = first_documents[0].text[:_SAMPLE_CHARACTERS]
    sample = {"text": text, "ids": ids_of(tokenizer, text)}
    return {"vocabulary": opened.vocabulary, "sample": sample}


def _write_part(
    part: Path,
    documents: tuple[Document, ...],
    first: int,
    tokenizer: OpenTokenizer,
    valid_every: int,
    progress: Progress,
) -> None:
    """Write the documents from number `first` on; `part` appears complete or not at all."""
    temporary = part.with_name(part.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(part, ignore_errors=True)  # a damaged one
    temporary.mkdir()
    builders: dict[str, Any] = {}
    for start in range(0, len(documents), _BATCH):
        batch = documents[start : start + _BATCH]
        tokens = 0
        encoded = tokenizer.documents([document.text for document in batch])
        for number, ids in enumerate(encoded, first + start):
            split = VALID if valid_every and number % valid_every == 0 else TRAIN
            if split not in builders:
                builders[split] = _builder(temporary / split, _dtype(tokenizer.vocabulary))
            builders[split].add_document(ids, [len(ids)])
            tokens += len(ids)
        progress.advance(sum(document.size for document in batch), documents=len(batch), tokens=tokens)
    for split, builder in builders.items():
        builder.finalize(str(indexed.idx_path(temporary / split)))
    temporary.rename(part)


def merge(layout: OutputFolder, known: Mapping[str, Any]) -> dict[str, indexed.Summary]:
    """Merge the parts of each split, move them to their final names, and write their facts."""
    parts = layout.complete_parts()
    merged = {
        split: [part / split for part in parts if indexed.idx_path(part / split).exists()]
        for split in (TRAIN, VALID)
    }
    if not merged[TRAIN]:
        raise UserError(
            "the only document went to the validation text; choose a larger --source, or --valid-every 0"
        )
    return {
        split: _merge_split(layout, split, prefixes, known) for split, prefixes in merged.items() if prefixes
    }


def _merge_split(
    layout: OutputFolder, split: str, parts: list[Path], known: Mapping[str, Any]
) -> indexed.Summary:
    """Merge the parts of one split into its final pair: first the tokens, then the index, then the facts."""
    final, merged = layout.prefix(split), layout.merged(split)
    builder = _builder(merged, indexed.summary(parts[0]).dtype)
    gc.freeze()  # add_index collects garbage for each part; without torch's many objects this takes no time
    for part in parts:
        builder.add_index(str(part))
    gc.unfreeze()
    builder.finalize(str(indexed.idx_path(merged)))
    if problems := indexed.problems(merged, thorough=True):
        raise RuntimeError("the merged data is damaged: " + "; ".join(problems))
    from megatron.flagscale.id_range import id_range

    _, largest_id = id_range(merged)
    layout.remove_index_cache(split)
    put_in_place(indexed.bin_path(merged), indexed.bin_path(final))
    put_in_place(indexed.idx_path(merged), indexed.idx_path(final))
    summary = indexed.summary(final)
    write_facts(final, {**asdict(summary), "largest_id": largest_id, **known})
    return summary


def _sound_part(part: Path) -> bool:
    """Return whether this part is complete; one that has lost bytes since (in a power cut) is remade."""
    splits = [part / split for split in (TRAIN, VALID) if indexed.idx_path(part / split).exists()]
    return bool(splits) and not any(indexed.problems(split) for split in splits)


def _dtype(vocabulary: int) -> str:
    """Return the smallest type, as Megatron itself would choose it."""
    return str(_megatron().DType.optimal_dtype(vocabulary).__name__)


def _builder(prefix: Path, dtype: str) -> Any:
    """Return megatron-core's own writer, so that the format is right by construction."""
    megatron = _megatron()
    return megatron.IndexedDatasetBuilder(str(indexed.bin_path(prefix)), dtype=getattr(megatron.numpy, dtype))


@functools.cache
def _megatron() -> Any:
    """Import megatron-core late (5 s, with torch), without its warnings about optional GPU libraries."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="Could not determine rank")  # this is the only process
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron.core.datasets import indexed_dataset
    return indexed_dataset
