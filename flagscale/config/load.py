"""Strict loading: a composed configuration becomes a frozen `Experiment`, and every mistake is kept."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from flagscale import registry
from flagscale.config.command import COMMAND_KEYS, absolute
from flagscale.config.resolve import resolve
from flagscale.config.schema import Experiment, ExperimentSection, Task
from flagscale.config.secrets import is_secret
from flagscale.config.source_map import SourceMap
from flagscale.config.v060 import translate as v060
from flagscale.errors import Problem, closest, nearest


@dataclass(frozen=True)
class Loaded:
    """The experiment level, as far as it can be read."""

    experiment: Experiment | None
    """With defaults in place of wrong keys, for further checks; None if there is no experiment to check."""
    problems: tuple[Problem, ...]
    """Every unknown key, wrong type, missing key and interpolation that cannot be resolved."""
    notices: tuple[str, ...] = ()
    wrong: frozenset[str] = frozenset()
    """Paths of the keys whose value is not known because of a mistake: their own, or a misspelt name."""
    has_task: bool = True
    """Whether the task's engine, type and group are known."""


def load_experiment(config: DictConfig, source_map: SourceMap) -> Loaded:
    """Return the checked experiment, its mistakes, and notices about translated v0.6.0 keys."""
    tree, failed = resolve(config, source_map)
    problems = list(failed.values())
    notices = v060.translate_experiment(tree, source_map, problems)
    reported = {problem.where for problem in problems}
    wrong = set(failed)
    section, found = _read_experiment(tree.get("experiment"), source_map, wrong)
    found += _other_groups(tree, source_map, wrong)
    # A key whose interpolation failed, or that is `???`, is reported once: not as missing too.
    problems += [problem for problem in found if problem.where not in reported]
    if section is None:
        return Loaded(None, tuple(problems), tuple(notices), frozenset(wrong), has_task=False)
    meant = _meant(section.task, tree, wrong)
    arguments = _mapping(tree.get(meant.type))
    has_task = isinstance(tree.get(meant.type), dict) and meant.type in _task_types(meant.backend)
    experiment = _experiment(section.model_copy(update={"task": meant}), arguments)
    return Loaded(experiment, tuple(problems), tuple(notices), frozenset(wrong), has_task)


def read_section[Keys: BaseModel](
    model: type[Keys], raw: object, path: str, source_map: SourceMap
) -> tuple[Keys | None, list[Problem]]:
    """Return the checked group of keys at a path, or None and every problem in it."""
    if not isinstance(raw, dict):
        if raw is not None:
            return None, [Problem("a group of keys is expected here", source_map.where(path))]
        return None, [Problem("this group is missing", source_map.where(path), "copy one from examples/")]
    try:
        return model.model_validate(raw), []
    except ValidationError as error:
        return None, _problems(error.errors(), model, path, source_map)


_PLACEHOLDERS: dict[tuple[str, ...], Any] = {
    ("exp_name",): "unnamed",
    ("exp_dir",): "unknown",
    ("task",): {"backend": "unknown"},
    ("task", "backend"): "unknown",
}
"""Values of required keys that are missing or wrong, so that the other keys can be used."""


def _read_experiment(
    raw: object, source_map: SourceMap, wrong: set[str]
) -> tuple[ExperimentSection | None, list[Problem]]:
    """Return the experiment level without its wrong keys, and their problems; add their paths to `wrong`."""
    section, problems = read_section(ExperimentSection, raw, "experiment", source_map)
    values = copy.deepcopy(raw)
    for _ in _PLACEHOLDERS:
        if section is not None or not isinstance(values, dict):
            break
        try:
            section = ExperimentSection.model_validate(values)
        except ValidationError as error:
            for entry in error.errors():
                _leave_out(values, entry, wrong)
    return section, problems


def _leave_out(values: dict[str, Any], entry: ErrorDetails, wrong: set[str]) -> None:
    """Remove a wrong key, or fill in a missing one; a misspelt name makes the key that is meant wrong."""
    *parents, name = keys = _keys(entry)
    wrong.add(".".join(("experiment", *keys)))
    place: Any = values
    for key in parents:
        if not isinstance(place.get(key), dict):
            del place[key]  # an item of a list: the whole list is wrong
            return
        place = place[key]
    place.pop(name, None)
    if entry["type"] == "missing":
        place[name] = copy.deepcopy(_PLACEHOLDERS.get(keys))
    elif entry["type"] == "extra_forbidden":
        meant = closest(name, _fields(ExperimentSection, parents))
        if meant and meant not in place:
            wrong.add(".".join(("experiment", *parents, meant)))


def _other_groups(tree: dict[str, Any], source_map: SourceMap, wrong: set[str]) -> list[Problem]:
    """Return the problems at the top level: a task type that the engine does not support, a missing task
    group, and unknown keys. Add to `wrong` what they leave open.
    """
    experiment = _mapping(tree.get("experiment"))
    task = _mapping(experiment.get("task"))
    group, engine = task.get("type") or "train", task.get("backend")
    problems: list[Problem] = []
    is_group_known = bool(experiment) and not {"experiment.task", "experiment.task.type"} & wrong
    if is_group_known and _is_engine(engine) and group not in (types := _task_types(engine)):
        what, hint = f"the engine `{engine}` does not support `{group}`", f"supported: {', '.join(types)}"
        problems.append(Problem(what, source_map.where("experiment.task.type"), hint))
        wrong.add("experiment.task.type")
        is_group_known = False
    # If the task type is wrong, any group may be the intended one.
    valid = top_keys([group] if is_group_known else [*_task_types(), *_task_types(engine), str(group)])
    unknown = [str(key) for key in tree if key not in valid]
    if is_group_known and not isinstance(tree.get(group), dict):
        is_given = tree.get(group) is not None
        what = "a group of keys is expected here" if is_given else "this task group is missing"
        hint = "" if is_given else f"add it (defaults: - {group}: NAME), or fix experiment.task.type"
        # A misspelt group is reported once.
        if not any(closest(key, valid) == group for key in unknown):
            problems.append(Problem(what, source_map.where(group), hint))
    problems += [
        Problem(f"unknown key `{key}`", source_map.where(key), nearest(key, valid)) for key in unknown
    ]
    return problems


def top_keys(groups: Iterable[str] | None = None) -> list[str]:
    """Return the valid names at the top level; `groups` are the task groups (default: the built-in ones)."""
    return ["experiment", "action", *(_task_types() if groups is None else groups), *COMMAND_KEYS]


def _meant(task: Task, tree: dict[str, Any], wrong: set[str]) -> Task:
    """Return the task; if its type is wrong, with the only type of its engine that has a group of keys."""
    groups = [kind for kind in _task_types(task.backend) if isinstance(tree.get(kind), dict)]
    if "experiment.task.type" in wrong and _is_engine(task.backend) and len(groups) == 1:
        return task.model_copy(update={"type": groups[0]})
    return task


def _is_engine(name: object) -> bool:
    return isinstance(name, str) and registry.is_known("engines", name)


def _task_types(engine: object = None) -> list[str]:
    """Return the task types of an engine; of all built-in engines if it is not known.

    Engines state their task types themselves, so a start imports only the one that it uses.
    """
    names = [str(engine)] if _is_engine(engine) else registry.BUILT_IN["engines"]
    return [kind for name in names for kind in registry.load("engines", name).task_types]


def _mapping(value: object) -> dict[Any, Any]:
    return value if isinstance(value, dict) else {}


def _experiment(section: ExperimentSection, arguments: dict[str, Any]) -> Experiment:
    runner = section.runner
    if runner.hostfile is not None:
        runner = runner.model_copy(update={"hostfile": str(absolute(runner.hostfile))})
    return Experiment(
        name=section.exp_name,
        exp_dir=absolute(section.exp_dir),
        task=section.task,
        runner=runner,
        envs=section.envs,
        cmds=section.cmds,
        auto_tuner=section.auto_tuner,
        chips=absolute(section.chips) if section.chips else None,
        arguments=arguments,
    )


def _problems(
    entries: Sequence[ErrorDetails], model: type[BaseModel], path: str, source_map: SourceMap
) -> list[Problem]:
    """Return the problem of each pydantic error; a required key whose name is misspelt is reported once."""
    misspelt = {
        (*_keys(entry)[:-1], closest(_keys(entry)[-1], _fields(model, _keys(entry)[:-1])))
        for entry in entries
        if entry["type"] == "extra_forbidden"
    }
    return [
        _problem(entry, model, path, source_map)
        for entry in entries
        if entry["type"] != "missing" or _keys(entry) not in misspelt
    ]


def _keys(entry: ErrorDetails) -> tuple[str, ...]:
    return tuple(str(part) for part in entry["loc"] if part != "[key]")


def _problem(entry: ErrorDetails, model: type[BaseModel], path: str, source_map: SourceMap) -> Problem:
    """Turn one pydantic error into a message with file, line and the nearest valid name."""
    keys = _keys(entry)
    where = source_map.where(".".join([path, *keys]))
    match entry["type"]:
        case "extra_forbidden":
            return Problem(f"unknown key `{keys[-1]}`", where, nearest(keys[-1], _fields(model, keys[:-1])))
        case "missing":
            return Problem(f"the key `{keys[-1]}` is required", where)
        case "model_type" | "dict_type":
            return Problem("a group of keys is expected here", where)
    message = entry["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    value = entry["input"]
    is_shown = isinstance(value, str | int | float) and not is_secret(keys[-1])
    return Problem(f"{message} (it is {value!r})" if is_shown else message, where)


def _fields(model: type[BaseModel], keys: Sequence[str]) -> list[str]:
    """Return the valid names of the section at `keys` below a model."""
    for key in keys:
        annotation = model.model_fields[key].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
