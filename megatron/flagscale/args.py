"""FlagScale's own arguments, and the parser that holds them together with the engine's."""

from __future__ import annotations

import argparse
import functools
import itertools
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from flagscale.checks.recorded import WITH_OPTIM
from flagscale.checks.stablelm2 import STYLE
from flagscale.errors import UserError
from flagscale.formats import option_of
from megatron.flagscale.checkpoint.huggingface import add_conversion_args
from megatron.flagscale.checkpoint.retention import add_retention_args
from megatron.flagscale.chips import HOST_BACKEND, chip
from megatron.flagscale.group_routing import add_routing_args
from megatron.flagscale.layers.gemma_arguments import add_gemma_args
from megatron.flagscale.layers.norm_arguments import add_norm_args
from megatron.flagscale.lora.arguments import add_lora_args
from megatron.flagscale.metrics.tracking import add_tracking_args
from megatron.flagscale.patching import Patch
from megatron.flagscale.schedule import add_schedule_args
from megatron.flagscale.sft.arguments import add_mask_args
from megatron.flagscale.steering.arguments import add_steering_args
from megatron.flagscale.tracing import add_tracing_args

AddArguments = Callable[[argparse.ArgumentParser], object]
"""Adds a training program's own arguments to a parser; the return value is ignored."""


def add_flagscale_args(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add FlagScale's arguments and return the parser; passed to Megatron as `extra_args_provider`."""
    group = parser.add_argument_group("flagscale")
    group.add_argument(
        "--metrics-file",
        metavar="PATH",
        help="Append one JSON object per logged iteration (loss, speed, memory) to this file.",
    )
    group.add_argument(
        "--init-by-rank",
        action="store_true",
        help="Draw initial weights as Megatron does, from seeds that depend on the rank's place in the "
        "parallel layout. By default they depend only on --seed, so all layouts start from the same weights. "
        "With --transformer-impl transformer_engine, weights are always drawn by rank.",
    )
    group.add_argument(
        "--validation-set-intervals",
        nargs="+",
        type=int,
        metavar="N",
        help="With --multiple-validation-sets: evaluate each data set every N iterations, a multiple of "
        "--eval-interval, and at the end. By default all of them are evaluated every --eval-interval.",
    )
    group.add_argument(
        option_of(WITH_OPTIM),
        action="store_true",
        help="Start a new training with the weights and the optimizer's state of the checkpoint in --load: "
        "iteration, samples, schedule and random numbers begin again. With --pretrained-checkpoint, only the "
        "first start does so, from there, and later starts continue.",
    )
    group.add_argument(
        "--end-of-document",
        metavar="TOKEN",
        help="The token that ends a document, with GPT2BPETokenizer (default: <|endoftext|>) and "
        "HuggingFaceTokenizer (default: the tokenizer's own).",
    )
    for part, meaning in (
        ("granularity", "0 off, 1 full"),
        ("method", "0 uniform, 1 block"),
        ("num-layers", "as --recompute-num-layers"),
    ):
        group.add_argument(
            f"--recompute-{part}-per-stage-micro-batch",
            metavar="JSON",
            help="Recompute per pipeline stage and micro-batch. Rows are [stages, n0, v0, n1, v1, ...]: the "
            "first n0 micro-batches of a step have value v0, the next n1 have v1. The rows cover all stages "
            "(all chunks of an interleaved pipeline, in the order of the layers). Requires "
            f"--recompute-granularity full. Values: {meaning}.",
        )
    group.add_argument(
        "--hetero-layout",
        metavar="JSON",
        help="A pipeline over unequal meshes, which the launcher derives from `hetero_process_meshes` etc.: "
        '{"meshes": [{"tp", "cp", "ep", "dp", "pp", "layers"}, ...], "cpu_communication", ...}. '
        "Each rank finds its own degrees in it.",
    )
    add_mask_args(group)
    add_routing_args(group)
    add_norm_args(group)
    add_gemma_args(group)
    add_schedule_args(group)
    add_lora_args(group)
    add_steering_args(group)
    add_retention_args(group)
    add_conversion_args(group)
    add_tracing_args(group)
    add_tracking_args(group)
    for dest, (choice, _) in _our_choices().items():
        option = next(action for action in parser._actions if action.dest == dest)
        option.choices = list(dict.fromkeys([*(option.choices or ()), choice]))
    return parser


def _our_choices() -> dict[str, tuple[str, str]]:
    """Return, by dest, one more choice of an argument of the engine, and the engine's that is parsed instead.

    They are torch's kernels (megatron/flagscale/layers), the collective backend of a chip that the engine
    does not know, and a learning-rate schedule.
    """
    return {
        "transformer_impl": ("torch", "local"),
        "distributed_backend": (chip().backend, HOST_BACKEND),
        "lr_decay_style": (STYLE, "cosine"),
    }


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # argparse itself would print the usage of 900 options first.
        raise UserError(message)


def engine_parser(add_arguments: AddArguments | None = None) -> argparse.ArgumentParser:
    """Return a parser with all arguments of the engine, FlagScale and a program, as the trainer builds it."""
    from megatron.training.arguments import add_megatron_arguments

    parser = _Parser(allow_abbrev=False)
    return _add_all(add_megatron_arguments(parser), add_arguments)


def _add_all(parser: argparse.ArgumentParser, add_arguments: AddArguments | None) -> argparse.ArgumentParser:
    add_flagscale_args(parser)
    if add_arguments is not None:
        add_arguments(parser)
    return parser


def parse(add_arguments: AddArguments | None = None) -> argparse.Namespace:
    """Parse and validate the command line as the trainer does, with a program's arguments.

    Raises `UserError` if the arguments are invalid.
    """
    from megatron.training.arguments import parse_and_validate_args

    provider = functools.partial(_add_all, add_arguments=add_arguments)
    try:
        args: argparse.Namespace = parse_and_validate_args(extra_args_provider=provider)
    except (AssertionError, ValueError, OSError) as error:
        # Many of the engine's assertions have no message: their condition is then the best explanation.
        reason = str(error) or traceback.extract_tb(error.__traceback__)[-1].line
        raise UserError(f"invalid arguments: {reason}") from error
    # The trainer parses the command line again (for fault tolerance), with its own choices only.
    sys.argv[1:] = _without_our_choices(sys.argv[1:])
    return args


def _without_our_choices(argv: Sequence[str]) -> list[str]:
    """Return the arguments with our choices replaced by the engine's; its second parse uses neither."""
    shown = list(argv)
    for dest, (ours, theirs) in _our_choices().items():
        option = option_of(dest)
        pairs = itertools.pairwise(["", *shown])
        shown = [
            argument.replace(ours, theirs) if option in (before, argument.partition("=")[0]) else argument
            for before, argument in pairs
        ]
    return shown


def changed_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments (by dest) that differ from the engine's defaults."""
    defaults = vars(engine_parser().parse_args([]))
    return {name: value for name, value in vars(args).items() if _differs(value, defaults.get(name))}


def _print_changed(original: Callable[..., None]) -> Callable[..., None]:
    def print_args(title: str, args: argparse.Namespace) -> None:
        if args.rank != 0:
            return
        changed = changed_arguments(args)
        print(f"{title} that differ from the engine's defaults:")
        for name in sorted(changed):
            print(f"  {name} = {changed[name]}")

    return print_args


def _differs(value: Any, default: Any) -> bool:
    return value is not None and value != default


PATCHES = (
    Patch(
        "megatron.training.arguments:_print_args",
        _print_changed,
        "It prints all 900 arguments; a reader needs only those that differ from the defaults.",
        "worker",
    ),
)
