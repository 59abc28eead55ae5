"""Read files written for FlagScale v0.6.0: translate what has a meaning today, refuse the rest by name.

None of its keys is ignored in silence; the table is in `v060_table.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import ceil
from typing import Any

from flagscale.config.leaves import Leaf
from flagscale.config.locate import Locator
from flagscale.config.v060_table import ENTRYPOINTS, EXPERIMENT, TASK, TOKENIZERS, Change
from flagscale.errors import Problem


def translate_experiment(tree: dict[str, Any], locator: Locator, problems: list[Problem]) -> list[str]:
    """Change the experiment level of `tree` in place as the table says; return the notices."""
    notices: list[str] = []
    experiment = tree.get("experiment")
    if not isinstance(experiment, dict):
        return notices
    for key, change in EXPERIMENT.items():
        parent, _, name = key.rpartition(".")
        node = experiment.get(parent) if parent else experiment
        if not isinstance(node, dict) or name not in node:
            continue
        value, path = node.pop(name), f"experiment.{key}"
        if change.act == "rename":
            _move(experiment, change.text, value, locator.where(path), problems)
            notices.append(f"{locator.where(path)}: is `experiment.{change.text}` now")
        elif _is_on(value, change):
            problems.append(_refusal(path, name, change, locator))
        else:
            notices.append(f"{locator.where(path)}: dropped, it switches nothing on")
    _translate_entrypoint(experiment, locator, notices)
    return notices


def _move(experiment: dict[str, Any], target: str, value: Any, where: str, problems: list[Problem]) -> None:
    """Put a value where its key is today, unless that is given too."""
    group, _, name = target.rpartition(".")
    node = experiment[group] = experiment.get(group) or {}
    if not isinstance(node, dict):
        return  # told as a wrong type
    if node.setdefault(name, value) != value:
        what = f"given twice with different values: {value!r} here, {node[name]!r} at experiment.{target}"
        problems.append(Problem(what, where, "keep the second"))


def _translate_entrypoint(experiment: dict[str, Any], locator: Locator, notices: list[str]) -> None:
    task = experiment.get("task")
    if not isinstance(task, dict):
        return
    entrypoint = str(task.get("entrypoint")).removeprefix("./")
    if entrypoint in ENTRYPOINTS:
        where = locator.where("experiment.task.entrypoint")
        notices.append(f"{where}: `{task['entrypoint']}` is `{ENTRYPOINTS[entrypoint]}` now")
        task["entrypoint"] = ENTRYPOINTS[entrypoint]


def translate_task(
    leaves: list[Leaf], locator: Locator, problems: list[Problem]
) -> tuple[list[Leaf], dict[str, str], list[str]]:
    """Apply the table to the task level; return (leaves, environment that replaces keys, notices)."""
    kept: list[Leaf] = []
    notices: list[str] = []
    environment: dict[str, str] = {}
    for leaf in _with_ffn_size(leaves, locator, notices):
        where, change = locator.where(leaf.path), TASK.get(leaf.name)
        if leaf.name in ("wandb_api_key", "wandb_mode"):
            if leaf.value:
                environment[leaf.name.upper()] = str(leaf.value)
        elif leaf.name == "tokenizer_type" and leaf.value in TOKENIZERS:
            notices.append(f"{where}: `{leaf.value}` is `{TOKENIZERS[leaf.value]}` now")
            kept.append(replace(leaf, value=TOKENIZERS[leaf.value]))
        elif change is None:
            kept.append(leaf)
        elif change.act == "rename":
            notices.append(f"{where}: is `{change.text}` now")
            kept.append(replace(leaf, name=change.text))
        elif change.act == "drop":
            notices.append(f"{where}: dropped, {change.text}")
        elif _is_on(leaf.value, change):
            problems.append(_refusal(leaf.path, leaf.name, change, locator))
        else:
            notices.append(f"{where}: dropped, it switches nothing on")
    return kept, environment, notices


def ffn_hidden_size(hidden_size: int, multiple_of: int, multiplier: float = 1.0) -> int:
    """Return the width of a SwiGLU feed-forward layer by Llama's rule: 2/3 of 4h, scaled, rounded up."""
    width = int(multiplier * int(2 * 4 * hidden_size / 3))
    return multiple_of * ceil(width / multiple_of)


def _with_ffn_size(leaves: list[Leaf], locator: Locator, notices: list[str]) -> Iterator[Leaf]:
    """Replace `multiple_of` and `hidden_dim_multiplier` by the `ffn_hidden_size` they stand for.

    As in v0.6.0 they mean something only with SwiGLU and without an explicit `ffn_hidden_size`.
    """
    named = {leaf.name: leaf for leaf in leaves}
    values = {leaf.name: leaf.value for leaf in leaves}
    rule, scale = values.get("multiple_of"), values.get("hidden_dim_multiplier")
    unused = ""
    if values.get("ffn_hidden_size") is not None:
        unused = "ffn_hidden_size is given"
    elif not values.get("swiglu"):
        unused = "it is read with swiglu only"
    elif rule is None:
        unused = "it is read with multiple_of only"
    for leaf in leaves:
        if leaf.name not in ("multiple_of", "hidden_dim_multiplier"):
            yield leaf
        elif unused:
            notices.append(f"{locator.where(leaf.path)}: dropped, {unused}")
        elif leaf.name == "multiple_of":
            hidden = values.get("hidden_size")
            if not all(map(_is_positive, (rule, hidden, scale or 1.0))):
                yield leaf  # told as an unknown argument
                continue
            size = ffn_hidden_size(int(values["hidden_size"]), int(leaf.value), float(scale or 1.0))
            rules = [named[name].path for name in ("multiple_of", "hidden_dim_multiplier") if name in named]
            notices.append(f"{', '.join(map(locator.where, rules))}: is `ffn_hidden_size: {size}` now")
            yield Leaf("ffn_hidden_size", size, leaf.path)


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _is_on(value: Any, change: Change) -> bool:
    if isinstance(value, bool):
        return value
    return bool(value) and value != change.off


def _refusal(path: str, name: str, change: Change, locator: Locator) -> Problem:
    return Problem(f"`{name}` of FlagScale v0.6.0 is not read any more", locator.where(path), change.text)
