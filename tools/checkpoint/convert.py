"""Convert a model between Hugging Face and Megatron: `convert.py --load DIR --save DIR`.

The format of the source is detected; the target gets the other format, or that of `--to`.
"""

from __future__ import annotations

import re
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: import from the root of the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from flagscale.errors import Problem, UserError
from megatron.flagscale.convert.families.registry import names
from megatron.flagscale.convert.model import DTYPES
from tools.checkpoint.command_v060 import refuse_old_command
from tools.command import run
from tools.progress import Progress

_EXPERTS = {"topk": "--topk", "std": "--router-std", "seed": "--seed"}
"""Fields of `Upcycling`, with their options."""
_TOWER = {
    "layer": "--tower-layer",
    "aspect_ratio": "--image-aspect-ratio",
    "pinpoints": "--image-grid-pinpoints",
}
"""Fields of `Wanted`, with their options."""
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def size(text: str) -> int:
    """Return the number of bytes that `5GB`, `500MB` or a plain number stands for."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if not found or not float(found[1]):
        raise ArgumentTypeError(f"{text!r} is not a size; write it like 5GB or 500MB")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--load", type=Path, required=True, help="folder of the model or its checkpoints")
    parser.add_argument("--save", type=Path, required=True, help="folder to create")
    parser.add_argument("--to", choices=("huggingface", "megatron"), help="format of --save (default: other)")
    parser.add_argument("--model", choices=sorted(names()), help="model family (default: detected)")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="cast all tensors (default: keep precisions)")
    parser.add_argument("--iteration", type=int, help="checkpoint to convert (default: newest complete one)")
    parser.add_argument("--tokenizer", type=Path, help="folder of the tokenizer (default: the source's)")
    parser.add_argument(
        "--chat-template", metavar="NAME|FILE", help="of what is exported (default: that of the training)"
    )
    parser.add_argument(
        "--vocab-size", type=int, help="true number of tokens (default: from the source or tokenizer)"
    )
    parser.add_argument("--max-shard-size", type=size, help="of each safetensors file (default: 5GB)")
    parser.add_argument("--verify-logits", action="store_true", help="run both models and compare")
    parser.add_argument(
        "--without-mtp", action="store_true", help="leave out the layers for multi-token prediction"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace --save if it exists")
    experts = parser.add_argument_group("dense to mixture of experts")
    experts.add_argument("--experts", type=int, help="copy the MLP into this many experts")
    experts.add_argument("--topk", type=int, help="experts per token (default: 2)")
    experts.add_argument("--router-std", dest="std", type=float, help="of its weights (default: 0.02)")
    experts.add_argument("--seed", type=int, help="of the router's weights (default: 0)")
    pictures = parser.add_argument_group("language model to one that sees pictures")
    pictures.add_argument("--tower", type=Path, metavar="FOLDER", help="vision tower: CLIP or SigLIP")
    pictures.add_argument(
        "--tower-layer", dest="layer", type=int, help="the layer that is read (default: -2)"
    )
    pictures.add_argument(
        "--image-aspect-ratio",
        dest="aspect_ratio",
        metavar="KIND",
        help="square or pad (LLaVA), or anyres_max_N (LLaVA-OneVision: 9); default: square",
    )
    pictures.add_argument(
        "--image-grid-pinpoints", dest="pinpoints", metavar="GRIDS", help="default: (1x1),...,(6x6)"
    )
    return parser


def _given(arguments: Namespace, options: Mapping[str, str], needed: str, value: str) -> dict[str, Any]:
    """Return those fields whose option is given; raise `UserError` if the option that they need is not."""
    given = {name: getattr(arguments, name) for name in options if getattr(arguments, name) is not None}
    if given and getattr(arguments, needed.removeprefix("--")) is None:
        what = f"has no effect without {needed}"
        raise UserError(Problem(what, options[name], f"add {needed} {value}") for name in given)
    return given


def main() -> int:
    """Run the conversion given on the command line."""
    refuse_old_command(sys.argv[1:])
    arguments = _parser().parse_args()
    from megatron.flagscale.convert.convert import convert
    from megatron.flagscale.convert.tower_folder import Wanted
    from megatron.flagscale.convert.upcycle import Upcycling

    how = _given(arguments, _EXPERTS, "--experts", "N")
    wanted = _given(arguments, _TOWER, "--tower", "FOLDER")
    tower = None if arguments.tower is None else Wanted(arguments.tower, **wanted)
    upcycling = None if arguments.experts is None else Upcycling(arguments.experts, **how)
    made = convert(
        arguments.load,
        arguments.save,
        to=arguments.to,
        family=arguments.model,
        dtype=DTYPES[arguments.dtype] if arguments.dtype else None,
        tokenizer=arguments.tokenizer,
        vocab_size=arguments.vocab_size,
        iteration=arguments.iteration,
        chat_template=arguments.chat_template,
        shard_bytes=arguments.max_shard_size,
        upcycling=upcycling,
        tower=tower,
        without_mtp=arguments.without_mtp,
        overwrite=arguments.overwrite,
        verify=arguments.verify_logits,
        progress=Progress,
    )
    for notice in made.notices:
        print(f"note: {notice}", file=sys.stderr)
    print(f"{made.target}: {made.model.family}, {made.tensors} tensors, {made.bytes / 1e6:,.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
