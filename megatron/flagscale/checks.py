"""Apply the rules of `flagscale.checks`, and those that need the worker, to a rank's arguments and machine.

The launcher enforces the same rules before a start, but a worker can also be started without a launcher.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import Enum
from typing import Any

from flagscale.checks.blend import named_files
from flagscale.checks.facts import facts
from flagscale.checks.hetero.keys import KEYS
from flagscale.checks.tracking import URI
from flagscale.checks.vocabulary import id_violation, range_of
from flagscale.checks.worker import Capabilities, worker_violations
from flagscale.errors import Problem, Violation
from flagscale.formats import option_of


def argument_problems(
    args: argparse.Namespace, machine: Capabilities, own_parts: Collection[str] = ()
) -> list[Problem]:
    """Return the problems of parsed arguments, not yet validated by the engine, on the given machine.

    `own_parts` names the parts that a user's program has itself (`flagscale.checks.worker.PARTS`).
    """
    # The rules work on plain values, because the launcher does not have the engine's enums.
    values = {name: value.name if isinstance(value, Enum) else value for name, value in vars(args).items()}
    found = worker_violations([values], machine, own_parts)
    return [*worker_problems(found), *_not_installed(args)]


def worker_problems(found: Iterable[Violation]) -> list[Problem]:
    """Return violations as problems, each with the option that it is about."""
    from megatron.flagscale.args import engine_parser

    if not (violations := list(found)):
        return []
    options: dict[str, str] = {}
    for action in engine_parser()._actions:
        options.setdefault(action.dest, action.option_strings[0])
    # The keys for meshes reach the worker as a single argument; all others are of the program itself.
    options |= dict.fromkeys(KEYS, "--hetero-layout")
    return [Problem(what, options.get(dest, option_of(dest))) for dest, what in violations]


def data_problems(values: Mapping[str, Any], tokenizer: Any) -> list[Problem]:
    """Return what is wrong with the data for the engine's tokenizer, of whatever type.

    The launcher compares what the tokenizer's files say. Here the tokenizer itself encodes the sample that
    was recorded beside the data.
    """
    problems: list[Problem] = []
    if values.get("mock_data"):
        return problems
    is_hf = values.get("tokenizer_type") == "HuggingFaceTokenizer"
    encodes_as_prepared = is_hf and not values.get("tokenizer_hf_no_include_special_tokens")
    for _, prefix in named_files(values):
        found = range_of(prefix)
        if found and (what := id_violation(prefix, found, tokenizer.vocab_size)):
            problems.append(Problem(what))
        elif encodes_as_prepared and (known := facts(prefix)):
            text, made = known["sample"]["text"], known["sample"]["ids"]
            if (ids := list(tokenizer.tokenize(text))) != made:
                what = f"{prefix}: its text {text!r} was encoded as {made}, but the tokenizer gives {ids}"
                problems.append(Problem(what, hint="use the tokenizer that made the data, or make it again"))
    return problems


_PACKAGES = {"wandb_project": ("wandb", "wandb"), URI: ("mlflow", "mlflow")}
"""Arguments that need a package, with its module and the extra of FlagScale that installs it."""


def _not_installed(args: argparse.Namespace) -> Iterator[Problem]:
    """Yield a problem per missing package; a run's folder of its name, importable too, does not count."""
    for name, (module, extra) in _PACKAGES.items():
        spec = importlib.util.find_spec(module) if getattr(args, name) else None
        if getattr(args, name) and (spec is None or spec.origin is None):
            what = f"the package `{module}` is not installed in {sys.prefix}"
            fix = f"run `pip install 'flagscale[{extra}]'` there, or remove {name}"
            yield Problem(what, option_of(name), fix)
