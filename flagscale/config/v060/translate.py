"""Read files written for FlagScale v0.6.0: apply the tables of `keys` to both levels of keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flagscale.config.engine_args import FlatKey, Unknown, leaf_name
from flagscale.config.source_map import SourceMap
from flagscale.config.v060.derived import with_batch_schedule, with_ffn_size, with_numbers
from flagscale.config.v060.keys import (
    EMU3,
    EMU3_MODES,
    ENTRYPOINTS,
    EXPERIMENT,
    INFERENCE,
    TASK,
    Change,
)
from flagscale.config.v060.pictures import with_pictures
from flagscale.config.v060.tokenizers import with_tokenizer
from flagscale.config.v060.ulysses import with_exchange
from flagscale.errors import Problem, messages


def translate_experiment(tree: dict[str, Any], source_map: SourceMap, problems: list[Problem]) -> list[str]:
    """Change the experiment level of `tree` in place by the table; return the notices."""
    notices: list[Problem] = []
    experiment = tree.get("experiment")
    node: Any
    if not isinstance(experiment, dict):
        return []
    for key, change in EXPERIMENT.items():
        *parents, name = key.split(".")
        node = experiment
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if not isinstance(node, dict) or name not in node:
            continue
        value, where = node.pop(name), source_map.where(f"experiment.{key}")
        _treat(value, change, where, experiment, "experiment", problems, notices)
    _translate_entrypoint(experiment, source_map, problems, notices)
    return messages(notices)


def _treat(
    value: Any,
    change: Change,
    where: str,
    tree: dict[str, Any],
    group: str,
    problems: list[Problem],
    notices: list[Problem],
) -> None:
    """Treat the value of a key that was taken out of `tree`, the keys of `group`, by a row of its table."""
    if change.act == "rename":
        _move(tree, group, change.text, value, where, problems)
        notices.append(Problem(f"renamed to `{group}.{change.text}`", where))
    elif change.act == "drop":
        notices.append(Problem(f"dropped because {change.text}", where))
    else:
        _refuse_or_drop(value, change, where, problems, notices)


def _move(
    tree: dict[str, Any], group: str, target: str, value: Any, where: str, problems: list[Problem]
) -> None:
    """Move a value to the current place of its key, unless that is given too."""
    section, _, name = target.rpartition(".")
    node = tree[section] = tree.get(section) or {}
    if not isinstance(node, dict):
        return  # reported as a wrong type
    if node.setdefault(name, value) != value:
        what = f"given twice with different values: {value!r} here, {node[name]!r} at {group}.{target}"
        problems.append(Problem(what, where, "remove the key here"))


def _translate_entrypoint(
    experiment: dict[str, Any], source_map: SourceMap, problems: list[Problem], notices: list[Problem]
) -> None:
    task = experiment.get("task")
    if not isinstance(task, dict):
        return
    where, given = source_map.where("experiment.task.entrypoint"), task.get("entrypoint")
    program = str(given).strip().removeprefix("./")
    if program in ENTRYPOINTS:
        task["entrypoint"] = ENTRYPOINTS[program]
        notices.append(Problem(f"`{given}` is now `{task['entrypoint']}`", where))


_IN_ENVIRONMENT = ("wandb_api_key", "wandb_mode")
"""Keys that become environment variables of the same names."""
_WANDB_MODES = ("online", "offline", "disabled")


def translate_task(
    flat_keys: list[FlatKey], source_map: SourceMap, problems: list[Problem]
) -> tuple[list[FlatKey], dict[str, str], list[str]]:
    """Apply the table to the task level; return (flat keys, environment that replaces keys, notices)."""
    kept: list[FlatKey] = []
    notices: list[Problem] = []
    environment: dict[str, str] = {}
    flat_keys = with_numbers(flat_keys)
    flat_keys = with_pictures(flat_keys, source_map, problems, notices)
    flat_keys = with_tokenizer(flat_keys, source_map, problems, notices)
    flat_keys = with_exchange(flat_keys, source_map, problems, notices)
    flat_keys = with_ffn_size(flat_keys, source_map, problems, notices)
    for flat_key in with_batch_schedule(flat_keys, source_map, problems, notices):
        change = TASK.get(flat_key.name)
        where = source_map.where(flat_key.path)
        if flat_key.value is Unknown.VALUE:
            if flat_key.name not in _IN_ENVIRONMENT and (change is None or change.act == "rename"):
                kept.append(replace(flat_key, name=change.text if change else flat_key.name))
        elif flat_key.name in _IN_ENVIRONMENT:
            if flat_key.name == "wandb_mode" and flat_key.value and flat_key.value not in _WANDB_MODES:
                what = f"`wandb_mode` cannot be {flat_key.value!r}; valid: {', '.join(_WANDB_MODES)}"
                problems.append(Problem(what, where))
            elif flat_key.value:
                text = source_map.text(flat_key.path, flat_key.value) or str(flat_key.value)
                environment[flat_key.name.upper()] = text
        elif change is None:
            kept.append(flat_key)
        elif change.act == "rename":
            notices.append(Problem(f"renamed to `{change.text}`", where))
            kept.append(replace(flat_key, name=change.text))
        elif change.act == "drop":
            notices.append(Problem(f"dropped because {change.text}", where))
        else:
            _refuse_or_drop(flat_key.value, change, where, problems, notices)
            if flat_key.name == "process_meshes":  # there are meshes, so rules without them do not apply
                kept.append(FlatKey("hetero_process_meshes", Unknown.VALUE, flat_key.path))
    return kept, environment, messages(notices)


_SECTIONS = ("system", "model", "data")


def place_taken(name: str, group: str, arguments: Mapping[str, Any]) -> str:
    """Return the key path whose value v0.6.0 took for a name that is given several times: the last.

    It merged its three sections one after the other, and a key or group in a later section replaced that of
    the same name in an earlier one. It passed no `false` on, so a `true` counts wherever it is. Returns "" if
    the name is given outside of the sections only.
    """
    merged: dict[str, tuple[str, Any]] = {}
    for section in _SECTIONS:
        node = arguments.get(section)
        for key, value in node.items() if isinstance(node, Mapping) else ():
            merged[str(key)] = (f"{group}.{section}.{key}", value)
    places = [
        (place, leaf)
        for path, value in merged.values()
        for place, leaf in _places(path, value)
        if leaf_name(place) == name
    ]
    passed = [place for place, leaf in places if leaf is not False]
    return next(reversed(passed or [place for place, _ in places]), "")


def _places(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _places(f"{path}.{key}", inner)
    else:
        yield path, value


def translate_inference(
    raw: Mapping[str, Any], group: str, source_map: SourceMap, problems: list[Problem]
) -> tuple[dict[str, Any], list[str]]:
    """Return the task group `inference` in today's keys, and notices about those of v0.6.0."""
    notices: list[Problem] = []
    kept, table = dict(raw), INFERENCE
    mode = _section(kept, ("generate",)).get("mode")
    if isinstance(mode, str) and mode in EMU3_MODES:
        kept["generate"] = {**kept["generate"], "mode": EMU3_MODES[mode]}
        where = source_map.where(f"{group}.generate.mode")
        notices.append(Problem(f"`{mode}` is now `{EMU3_MODES[mode]}`", where))
        table = {**table, **EMU3}
    for key, change in table.items():
        *parents, name = key.split(".")
        if name in _section(kept, parents):
            value = _section(kept, parents)[name]
            kept = _without(kept, (*parents, name))
            where = source_map.where(f"{group}.{key}")
            _treat(value, change, where, kept, group, problems, notices)
    return kept, messages(notices)


def _section(node: Any, parents: Sequence[str]) -> Mapping[str, Any]:
    for parent in parents:
        node = node.get(parent) if isinstance(node, Mapping) else None
    return node if isinstance(node, Mapping) else {}


def _without(node: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    name, *rest = path
    if rest:
        return {**node, name: _without(node[name], rest)}
    return {key: value for key, value in node.items() if key != name}


def _refuse_or_drop(
    value: Any, change: Change, where: str, problems: list[Problem], notices: list[Problem]
) -> None:
    """Report a key; one without an effect is only noticed."""
    if not (value if isinstance(value, bool) else value and value != change.off):
        notices.append(Problem("dropped because it has no effect", where))
    else:
        problems.append(Problem("this key of FlagScale v0.6.0 is no longer supported", where, change.text))
