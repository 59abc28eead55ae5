"""Our few arguments beside the engine's, and the parser that holds both."""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from flagscale.errors import UserError
from megatron.flagscale.patches import Patch


def add_flagscale_args(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add FlagScale's arguments; given to Megatron as `extra_args_provider`."""
    group = parser.add_argument_group("flagscale")
    group.add_argument(
        "--metrics-file",
        metavar="PATH",
        help="Append one JSON object a logged iteration (loss, speed, memory) to this file.",
    )
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # Not argparse's way, which prints the usage of 900 options first.
        raise UserError(message)


def engine_parser() -> argparse.ArgumentParser:
    """Return a parser with every argument of the engine and ours, as the trainer itself builds it."""
    from megatron.training.arguments import add_megatron_arguments

    parser = _Parser(prog="train_gpt", allow_abbrev=False)
    return add_flagscale_args(add_megatron_arguments(parser))


def parse() -> argparse.Namespace:
    """Parse and check the command line as the trainer does; `UserError` for what does not fit together."""
    from megatron.training.arguments import parse_and_validate_args

    try:
        args: argparse.Namespace = parse_and_validate_args(extra_args_provider=add_flagscale_args)
    except (AssertionError, ValueError, OSError) as error:
        # Many of the engine's assertions have no text: then the condition itself is the best there is.
        reason = str(error) or traceback.extract_tb(error.__traceback__)[-1].line
        raise UserError(f"the arguments do not fit together: {reason}") from error
    return args


def _print_changed(original: Callable[..., None]) -> Callable[..., None]:
    def print_args(title: str, args: argparse.Namespace) -> None:
        if args.rank != 0:
            return
        defaults = vars(engine_parser().parse_args([]))
        changed = {name: value for name, value in vars(args).items() if _differs(value, defaults.get(name))}
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
        "It prints all 900 arguments; those that are not the default are what a reader wants.",
        "worker",
    ),
)
