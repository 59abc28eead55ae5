"""Print the arguments and tasks of the installed lm-evaluation-harness as JSON:
`python -m megatron.flagscale.evaluation.catalog`.

The control plane checks users' keys and names of tasks against a committed copy of this output.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from importlib.metadata import version
from typing import Any

from flagscale.config.catalog import describe_actions, print_catalog
from megatron.flagscale.evaluation.harness import run_parser

_TYPES = {
    **dict.fromkeys(("model_args", "gen_kwargs", "metadata", "samples"), "loads"),
    "seed": "tuple_type",
    "fewshot_as_multiturn": "bool",
}
"""The types of values whose converters argparse does not name: JSON, `1,2,3,4`, a switch."""
_BOUNDS: dict[str, dict[str, Any]] = {
    "limit": {"exclusiveMinimum": 0},
    "num_fewshot": {"minimum": 0},
    "max_batch_size": {"minimum": 1},
    **{name: {"type": "object"} for name in ("model_args", "gen_kwargs", "metadata", "samples")},
}
"""What the harness does not check itself: a limit of 0 ends in a division by zero, for example."""

_OF_INDEX = {"include", "tag", "group", "task_list"}
"""Keys of a task's file that the harness reads itself (`lm_eval/tasks/_factory.py`)."""


def build_catalog() -> dict[str, Any]:
    """Return the catalog that `flagscale.engines.lm_eval.catalog` reads.

    `arguments`: those of `lm-eval run`, as `describe_actions` describes them; `tasks`: the names of all
    tasks, groups and tags, as `packed` packs them; `task_keys` and `output_types`: what files of tasks may
    contain.
    """
    from lm_eval.api.task import ALL_OUTPUT_TYPES
    from lm_eval.config.task import TaskConfig
    from lm_eval.tasks import TaskManager

    arguments = describe_actions(run_parser()._actions)
    for name, described in arguments.items():
        described["type"] = _TYPES.get(name, described["type"])
        described["bounds"] = _BOUNDS.get(name, {})
        if described["type"] in ("loads", "tuple_type", "bool"):
            described["nargs"] = None
        if described["default"] == "==SUPPRESS==":
            described["default"] = None
    return {
        "engine": "lm_eval",
        "version": version("lm_eval"),
        "arguments": arguments,
        "task_keys": sorted({one.name for one in fields(TaskConfig)} | _OF_INDEX),
        "output_types": ALL_OUTPUT_TYPES,
        "tasks": packed(TaskManager().all_tasks),
    }


def packed(names: Iterable[str]) -> dict[str, str]:
    """Return names by their part before the first `_`: the remainders, separated by spaces.

    One line per name would make the file twenty times as long.
    """
    remainders: dict[str, list[str]] = {}
    for name in sorted(names):
        first, separator, rest = name.partition("_")
        remainders.setdefault(first, []).append(separator + rest)
    return {first: " ".join(rests) for first, rests in remainders.items()}


if __name__ == "__main__":
    print_catalog(build_catalog)
