"""Tokenize documents in parts of a fixed number, and merge the parts into Megatron's files.

A part is written to a temporary folder and renamed once complete, so a restart reuses complete parts.
"""

import functools
import gc
import hashlib
import itertools
import json
import logging
import shutil
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flagscale.checks import indexed
from flagscale.errors import UserError
from flagscale.files import put_in_place
from tools.datasets.documents import Document, Source, skipped_notice
from tools.datasets.output import TRAIN, VALID, OutputFolder
from tools.progress import Progress

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BATCH = 256  # documents encoded at once: enough to keep all threads of the tokenizer busy


def tokenizer_fingerprint(folder: Path) -> str:
    """Return a hash that changes if the tokenizer yields other tokens."""
    return hashlib.sha256(_tokenizer_file(folder).read_bytes() + eos_token(folder).encode()).hexdigest()


def eos_token(folder: Path) -> str:
    """Return the token that ends a document."""
    path = folder / "tokenizer_config.json"
    try:
        token: Any = json.loads(path.read_text(encoding="utf-8"))["eos_token"]
    except (OSError, ValueError, KeyError, TypeError):
        token = None
    if isinstance(token, dict):  # the long form: {"content": "</s>", "lstrip": ...}
        token = token.get("content")
    if not isinstance(token, str):
        raise UserError(f"{path}: eos_token is missing, which has to end every document; add it")
    return token


def _tokenizer_file(folder: Path) -> Path:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; --tokenizer takes a folder that train_tokenizer.py or transformers wrote"
        )
    return path


def write_parts(
    layout: OutputFolder, source: Source, tokenizer: Path, valid_every: int, documents_per_part: int
) -> None:
    """Tokenize every part that does not exist yet."""
    from tokenizers import Tokenizer

    try:
        encoder = Tokenizer.from_file(str(_tokenizer_file(tokenizer)))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{_tokenizer_file(tokenizer)}: cannot be read as a tokenizer: {error}") from None
    encoder.encode_special_tokens = True  # text that spells "<|endoftext|>" must not end a document
    eos = encoder.token_to_id(eos_token(tokenizer))
    if eos is None:
        raise UserError(
            f"{_tokenizer_file(tokenizer)}: the eos_token {eos_token(tokenizer)!r} is not in its vocabulary"
        )

    _megatron()  # before the clock starts
    skipped: list[Path] = []
    reused = 0
    with Progress(source.size()) as progress:
        batches = itertools.batched(source.documents(skipped.append), documents_per_part)
        for number, documents in enumerate(batches):
            if _sound_part(layout.part(number)):
                reused += 1
                progress.advance(sum(document.size for document in documents))
            else:
                first = number * documents_per_part
                _write_part(layout.part(number), documents, first, encoder, eos, valid_every, progress)
    if reused:
        print(f"reusing {reused} part(s) of an earlier run", file=sys.stderr)
    if skipped:
        print(skipped_notice(skipped), file=sys.stderr)


def _write_part(
    part: Path,
    documents: tuple[Document, ...],
    first: int,
    encoder: "Tokenizer",
    eos: int,
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
        encodings = encoder.encode_batch_fast([document.text for document in batch], add_special_tokens=False)
        tokens = 0
        for number, encoding in enumerate(encodings, first + start):
            split = VALID if valid_every and number % valid_every == 0 else TRAIN
            if split not in builders:
                builders[split] = _builder(temporary / split, _dtype(encoder.get_vocab_size()))
            ids = [*encoding.ids, eos]
            builders[split].add_document(ids, [len(ids)])
            tokens += len(ids)
        progress.advance(sum(document.size for document in batch), documents=len(batch), tokens=tokens)
    for split, builder in builders.items():
        builder.finalize(str(indexed.idx_path(temporary / split)))
    temporary.rename(part)


def merge(layout: OutputFolder) -> dict[str, indexed.Summary]:
    """Merge the parts of each split and move them to their final names."""
    parts = layout.complete_parts()
    merged = {
        split: [part / split for part in parts if indexed.idx_path(part / split).exists()]
        for split in (TRAIN, VALID)
    }
    if not merged[TRAIN]:
        raise UserError(
            "the only document went to the validation text; choose a larger --source, or --valid-every 0"
        )
    return {split: _merge_split(layout, split, prefixes) for split, prefixes in merged.items() if prefixes}


def _merge_split(layout: OutputFolder, split: str, parts: list[Path]) -> indexed.Summary:
    """Merge the parts of one split into its final pair, the index last."""
    final, merged = layout.prefix(split), layout.parts / f"{split}.merged"
    builder = _builder(merged, indexed.summary(parts[0]).dtype)
    gc.freeze()  # add_index collects garbage for each part; without torch's many objects this takes no time
    for part in parts:
        builder.add_index(str(part))
    gc.unfreeze()
    builder.finalize(str(indexed.idx_path(merged)))
    if problems := indexed.problems(merged, thorough=True):
        raise RuntimeError("the merged data is damaged: " + "; ".join(problems))
    put_in_place(indexed.bin_path(merged), indexed.bin_path(final))
    put_in_place(indexed.idx_path(merged), indexed.idx_path(final))
    return indexed.summary(final)


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
