"""Tokenize text into Megatron's `.bin/.idx`: `preprocess.py --source texts/ --tokenizer t/ --output data/`.

Makes `data/train_text_document` and `data/valid_text_document`, prefixes for Megatron's `--train-data-path`
and `--valid-data-path`. The same command continues a killed run; under the final names there is a complete
pair or nothing that Megatron would open.

How: documents are tokenized in parts of a fixed number, each written to a temporary folder and renamed when
complete, so that a restart reuses those that are there; `text_document.parts/request.json` says what they are
made from. At the end all are merged and renamed, `.idx` last, and `text_document.json` says what was made.
"""

import functools
import gc
import hashlib
import itertools
import json
import logging
import os
import shutil
import sys
import warnings
from argparse import ArgumentParser
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file: import from the root of the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from flagscale.errors import UserError
from flagscale.inputs import indexed
from tools.command import run
from tools.datasets.documents import Document, Source, add_arguments, skipped_notice, source_of
from tools.datasets.folders import commit, locked, read_json, refuse_other, write_json
from tools.datasets.progress import Progress

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TRAIN, VALID = "train", "valid"
SUFFIX = "text_document"
VALID_EVERY = 50
DOCUMENTS_PER_PART = 10_000

_BATCH = 256  # documents encoded at once: enough to keep all threads of the tokenizer busy


@dataclass(frozen=True)
class Prepared:
    """What lies in the output folder."""

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
class _Layout:
    """The one place that knows the names below the output folder."""

    output: Path

    def prefix(self, split: str) -> Path:
        return self.output / f"{split}_{SUFFIX}"

    @property
    def record(self) -> Path:
        return self.output / f"{SUFFIX}.json"

    @property
    def parts(self) -> Path:
        return self.output / f"{SUFFIX}.parts"

    @property
    def request(self) -> Path:
        return self.parts / "request.json"

    def part(self, number: int) -> Path:
        return self.parts / f"{number:06d}"

    def complete_parts(self) -> list[Path]:
        """In order of their documents; an incomplete one has a suffix."""
        return sorted(path for path in self.parts.iterdir() if path.is_dir() and not path.suffix)

    def files(self) -> list[Path]:
        """Everything final, in the order in which it may go: never an index whose tokens are gone."""
        prefixes = [self.prefix(split) for split in (TRAIN, VALID)]
        return [self.record, *map(indexed.idx_path, prefixes), *map(indexed.bin_path, prefixes)]

    def discard(self) -> None:
        for file in self.files():
            file.unlink(missing_ok=True)
        shutil.rmtree(self.parts, ignore_errors=True)


def prepare(
    source: Source,
    tokenizer: Path,
    output: Path,
    *,
    valid_every: int = VALID_EVERY,
    documents_per_part: int = DOCUMENTS_PER_PART,
    overwrite: bool = False,
) -> Prepared:
    """Leave `source`, tokenized and cut into train and valid, in `output`; continue or reuse what is there.

    Documents 0, n, 2n, ... with n = `valid_every` go to valid (0: none). What has other settings is refused.
    """
    if valid_every == 1 or valid_every < 0:
        raise UserError(f"--valid-every {valid_every}: 2 or more, or 0 for no validation text")
    if documents_per_part < 1:
        raise UserError(f"--documents-per-part {documents_per_part}: 1 or more")
    layout = _Layout(output)
    fingerprint = source.fingerprint()
    request = {
        "source": fingerprint,
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "valid_every": valid_every,
        "documents_per_part": documents_per_part,
    }
    with locked(output):
        if overwrite:
            layout.discard()
        ready = _up_to_date(layout, request)
        if ready is not None:
            return ready
        layout.parts.mkdir(exist_ok=True)
        write_json(layout.request, request)
        _write_parts(layout, source, tokenizer, valid_every, documents_per_part)
        if source.fingerprint() != fingerprint:
            raise UserError(f"{source.name}: changed while it was read; run again with --overwrite")
        splits = _merge(layout)
        write_json(
            layout.record,
            {"request": request, "splits": {name: asdict(held) for name, held in splits.items()}},
        )
        shutil.rmtree(layout.parts)
        return Prepared(splits, made_now=True)


def tokenizer_fingerprint(folder: Path) -> str:
    """Changes when the tokenizer gives other tokens."""
    return hashlib.sha256(_tokenizer_file(folder).read_bytes() + eos_token(folder).encode()).hexdigest()


def eos_token(folder: Path) -> str:
    """The token that ends a document."""
    path = folder / "tokenizer_config.json"
    try:
        token: Any = json.loads(path.read_text(encoding="utf-8"))["eos_token"]
    except (OSError, ValueError, KeyError, TypeError):
        token = None
    if isinstance(token, dict):  # the long form: {"content": "</s>", "lstrip": ...}
        token = token.get("content")
    if not isinstance(token, str):
        raise UserError(f"{path}: names no eos_token, which has to end every document; add it")
    return token


def _tokenizer_file(folder: Path) -> Path:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; --tokenizer takes what train_tokenizer.py or transformers wrote"
        )
    return path


def _up_to_date(layout: _Layout, request: dict[str, Any]) -> Prepared | None:
    """What is there already, None if there is work to do; UserError if what is there must not be touched."""
    record = read_json(layout.record)
    if record is None:
        unfinished = read_json(layout.request)
        if unfinished is not None:
            if layout.complete_parts():  # else nothing is lost by starting with other settings
                refuse_other(layout.output, unfinished, request)
        elif strangers := [str(file) for file in layout.files() if file.exists()]:
            raise UserError(
                f"{strangers[0]}: not made by this tool; name another --output, or --overwrite replaces it"
            )
        return None
    refuse_other(layout.output, record["request"], request)
    splits = {name: indexed.Summary(**held) for name, held in record["splits"].items()}
    damaged = [problem for split in splits for problem in indexed.problems(layout.prefix(split))]
    if damaged:
        print(*damaged, "making the data anew", sep="\n", file=sys.stderr)
        layout.discard()
        return None
    shutil.rmtree(layout.parts, ignore_errors=True)  # left by a kill after all was done
    return Prepared(splits, made_now=False)


def _write_parts(
    layout: _Layout, source: Source, tokenizer: Path, valid_every: int, documents_per_part: int
) -> None:
    """Tokenize every part that is not there yet."""
    from tokenizers import Tokenizer

    try:
        encoder = Tokenizer.from_file(str(_tokenizer_file(tokenizer)))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{_tokenizer_file(tokenizer)}: no tokenizer: {error}") from None
    encoder.encode_special_tokens = True  # text that spells "<|endoftext|>" must not end a document
    eos = encoder.token_to_id(eos_token(tokenizer))
    if eos is None:
        raise UserError(
            f"{_tokenizer_file(tokenizer)}: {eos_token(tokenizer)!r}, its eos_token, is no token of it"
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
        print(f"{reused} part(s) of an earlier run reused", file=sys.stderr)
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
    """Write documents number `first` and following; `part` appears complete or not at all."""
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
        progress.advance(sum(document.size for document in batch), len(batch), tokens)
    for split, builder in builders.items():
        builder.finalize(str(indexed.idx_path(temporary / split)))
    temporary.rename(part)


def _merge(layout: _Layout) -> dict[str, indexed.Summary]:
    """Merge the parts of each split and bring them under their final names."""
    parts = layout.complete_parts()
    merged = {
        split: [part / split for part in parts if indexed.idx_path(part / split).exists()]
        for split in (TRAIN, VALID)
    }
    if not merged[TRAIN]:
        raise UserError("the only document went to valid; name a larger --source, or --valid-every 0")
    return {split: _merge_split(layout, split, prefixes) for split, prefixes in merged.items() if prefixes}


def _merge_split(layout: _Layout, split: str, parts: list[Path]) -> indexed.Summary:
    """Merge the parts of one split into its final pair, the index last."""
    final, merged = layout.prefix(split), layout.parts / f"{split}.merged"
    builder = _builder(merged, indexed.summary(parts[0]).dtype)
    gc.freeze()  # add_index collects garbage for each part: without torch's many objects that takes no time
    for part in parts:
        builder.add_index(str(part))
    gc.unfreeze()
    builder.finalize(str(indexed.idx_path(merged)))
    if problems := indexed.problems(merged, thorough=True):
        raise RuntimeError("the merged data is not sound: " + "; ".join(problems))
    commit(indexed.bin_path(merged), indexed.bin_path(final))
    commit(indexed.idx_path(merged), indexed.idx_path(final))
    return indexed.summary(final)


def _sound_part(part: Path) -> bool:
    """Whether an earlier run completed this part; one that lost bytes since (a power cut) is made again."""
    splits = [part / split for split in (TRAIN, VALID) if indexed.idx_path(part / split).exists()]
    return bool(splits) and not any(indexed.problems(split) for split in splits)


def _dtype(vocabulary: int) -> str:
    """The smallest type that Megatron itself would choose."""
    return str(_megatron().DType.optimal_dtype(vocabulary).__name__)


def _builder(prefix: Path, dtype: str) -> Any:
    """megatron-core's own writer, so that the format is right by construction."""
    megatron = _megatron()
    return megatron.IndexedDatasetBuilder(str(indexed.bin_path(prefix)), dtype=getattr(megatron.numpy, dtype))


@functools.cache
def _megatron() -> Any:
    """Import late (5 s, with torch), and without the warnings on GPU libraries that nothing here needs."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="Could not determine rank")  # there is but this process
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron.core.datasets import indexed_dataset
    return indexed_dataset


def main() -> int:
    """Preprocess from the command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_arguments(parser)
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder with tokenizer.json")
    parser.add_argument("--output", type=Path, required=True, help="folder of the data")
    parser.add_argument(
        "--valid-every",
        type=int,
        default=VALID_EVERY,
        help="hold out every n-th document (0: none, default: %(default)s)",
    )
    parser.add_argument(
        "--documents-per-part",
        type=int,
        default=DOCUMENTS_PER_PART,
        help="what a kill may cost (default: %(default)s)",
    )
    parser.add_argument("--threads", type=int, help="of the tokenizer (default: all cores)")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in the folder")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        os.environ["RAYON_NUM_THREADS"] = str(arguments.threads)  # of the tokenizer's thread pool
    prepared = prepare(
        source_of(arguments),
        arguments.tokenizer,
        arguments.output,
        valid_every=arguments.valid_every,
        documents_per_part=arguments.documents_per_part,
        overwrite=arguments.overwrite,
    )
    print(f"{arguments.output}: {'' if prepared.made_now else 'up to date, '}{prepared}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
