"""Convert a model between Hugging Face and Megatron: `convert.py --load DIR --save DIR`.

The format of the source is seen in its folder; the target has the other one, or that of `--to`.
"""

from __future__ import annotations

import re
import sys
from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path

if not __package__:  # run as a file: import from the root of the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from megatron.flagscale.convert.families import FAMILIES
from megatron.flagscale.convert.model import DTYPES
from tools.command import run
from tools.progress import Progress

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def size(text: str) -> int:
    """Return the bytes that `5GB`, `500MB` or a plain number mean."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if not found or not float(found[1]):
        raise ArgumentTypeError(f"{text!r} is no size; write 5GB or 500MB")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--load", type=Path, required=True, help="folder of the model or of its checkpoints")
    parser.add_argument("--save", type=Path, required=True, help="folder to make")
    parser.add_argument("--to", choices=("huggingface", "megatron"), help="format of --save (the other one)")
    parser.add_argument("--model", choices=sorted(FAMILIES), help="family (found out)")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="cast all tensors (each keeps its precision)")
    parser.add_argument("--iteration", type=int, help="which checkpoint of --load (the newest complete one)")
    parser.add_argument("--tokenizer", type=Path, help="folder of the tokenizer (the one of the source)")
    parser.add_argument(
        "--vocab-size", type=int, help="true number of tokens (asked of source and tokenizer)"
    )
    parser.add_argument("--max-shard-size", type=size, default="5GB", help="of safetensors (%(default)s)")
    parser.add_argument("--verify-logits", action="store_true", help="run both models and compare")
    parser.add_argument("--overwrite", action="store_true", help="replace --save if it is there")
    experts = parser.add_argument_group("dense to mixture of experts")
    experts.add_argument("--experts", type=int, help="copy the MLP into this many experts")
    experts.add_argument("--topk", type=int, default=2, help="experts of a token (%(default)s)")
    experts.add_argument("--router-std", type=float, default=0.02, help="of its weights (%(default)s)")
    experts.add_argument("--seed", type=int, default=0, help="of the router's weights (%(default)s)")
    return parser


def main() -> int:
    """Convert as the command line says."""
    arguments = _parser().parse_args()
    from megatron.flagscale.convert.convert import convert
    from megatron.flagscale.convert.upcycle import Upcycling

    upcycling = None
    if arguments.experts is not None:
        upcycling = Upcycling(arguments.experts, arguments.topk, arguments.router_std, arguments.seed)
    made = convert(
        arguments.load,
        arguments.save,
        to=arguments.to,
        family=arguments.model,
        dtype=DTYPES[arguments.dtype] if arguments.dtype else None,
        tokenizer=arguments.tokenizer,
        vocab_size=arguments.vocab_size,
        iteration=arguments.iteration,
        shard_bytes=arguments.max_shard_size,
        upcycling=upcycling,
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
