"""Convert BAAI's Emu3 into the form of transformers, which vLLM reads, without running code of its folders.

    python tools/emu3/convert.py --load Emu3-Gen --tower Emu3-VisionTokenizer --save Emu3-Gen-hf

Weights keep their values and precision.
"""

from __future__ import annotations

import json
import shutil
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file: import from the root of the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from flagscale.checks.stored_tensors import Stored
from flagscale.errors import Problem, UserError
from flagscale.files import write_atomic
from megatron.flagscale.convert.files import complete_folder, read_json
from megatron.flagscale.convert.weight_writer import SHARD_BYTES
from tools.command import run
from tools.emu3 import original_processor, original_tokenizer
from tools.emu3.original_config import CONFIG, Original, read_original
from tools.emu3.original_weights import Advances, copy_weights, read_weights
from tools.progress import Progress

if TYPE_CHECKING:
    from transformers import Emu3Config

_GENERATION = "generation_config.json"
_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Converted:
    """What was written: the number of tensors, their bytes, and what the user should know."""

    tensors: int
    bytes: int
    notices: tuple[str, ...]


@dataclass(frozen=True)
class _Source:
    """BAAI's two folders, read and checked; `tokens` and `special` are those of the tokenizer."""

    original: Original
    config: Emu3Config
    pictures: Mapping[str, Any]
    tokens: Sequence[bytes]
    special: Mapping[str, int]
    generation: Mapping[str, Any]
    stored: Mapping[str, Stored]


def convert(
    load: Path,
    tower: Path,
    save: Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    overwrite: bool = False,
    progress: Callable[[int], AbstractContextManager[Advances]] = Progress,
) -> Converted:
    """Write the language model in `load` and the vision tokenizer in `tower` into the new folder `save`.

    `progress` is called with the total number of bytes once it is known.

    Raises:
        UserError: the folders cannot be converted (lists all reasons found), or `save` exists.
    """
    with complete_folder(save, overwrite, load, tower) as folder:
        source = _opened(load, tower)
        total = sum(one.size for one in source.stored.values())
        free = shutil.disk_usage(folder).free
        if free < total:
            raise UserError(f"{save}: {total / 1e9:.1f} GB are needed, but only {free / 1e9:.1f} GB are free")
        with progress(total) as shown:
            copy_weights(source.stored, folder, shard_bytes, shown)
        tokenizer = original_tokenizer.converted(source.tokens, source.special)
        area = source.original.image_area
        original_processor.converted(source.pictures, area, tokenizer).save_pretrained(folder)
        source.config.save_pretrained(folder)
        write_atomic(folder / _GENERATION, json.dumps(source.generation, indent=2) + "\n")
    return Converted(len(source.stored), total, source.original.notices)


def _opened(load: Path, tower: Path) -> _Source:
    original = read_original(load, tower)
    pictures = original_processor.read_settings(tower)
    tokens = original_tokenizer.read_ranks(load / original_tokenizer.RANKS)
    special = original_tokenizer.read_special(load / original_tokenizer.VISION_TOKENS, len(tokens))
    vocabulary, codes = original.text["vocab_size"], original.tower["codebook_size"]
    differ = original_tokenizer.unlike(special, vocabulary, codes, original.ids)
    if problems := [Problem(what, f"{load} and {tower}") for what in differ]:
        raise UserError(problems)
    config = _config(original, original_tokenizer.vocabulary_map(special), load)
    generation = {key: original.text[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    if (load / _GENERATION).is_file():
        generation |= read_json(load / _GENERATION)
    return _Source(original, config, pictures, tokens, special, generation, read_weights(load, tower, config))


def _config(original: Original, vocabulary: Mapping[str, int], load: Path) -> Emu3Config:
    """Return transformers' configuration; raises `UserError` for values that it refuses."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import Emu3Config

    dtype = {"dtype": original.dtype} if original.dtype in _DTYPES else {}
    try:
        return Emu3Config(
            architectures=["Emu3ForConditionalGeneration"],
            text_config=dict(original.text),
            vq_config=dict(original.tower),
            vocabulary_map=dict(vocabulary),
            **dtype,
        )
    except (StrictDataclassError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())
        raise UserError([Problem(f"transformers refuses its values: {why}", str(load / CONFIG))]) from error


def main() -> int:
    """Run the conversion given on the command line."""
    parser = ArgumentParser(prog="convert.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--load", type=Path, required=True, help="BAAI's folder of the language model")
    parser.add_argument("--tower", type=Path, required=True, help="BAAI's folder of the vision tokenizer")
    parser.add_argument("--save", type=Path, required=True, help="folder to create")
    parser.add_argument("--overwrite", action="store_true", help="replace --save if it exists")
    arguments = parser.parse_args()
    made = convert(arguments.load, arguments.tower, arguments.save, overwrite=arguments.overwrite)
    for notice in made.notices:
        print(f"note: {notice}", file=sys.stderr)
    print(f"{arguments.save}: {made.tensors} tensors, {made.bytes / 1e6:,.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
