"""Strict loading: a composed configuration becomes a frozen `Experiment`, or one error with every mistake."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from flagscale import registry
from flagscale.config import compat_v060 as v060
from flagscale.config.schema import Experiment, ExperimentSection, Runner, Task
from flagscale.config.secrets import is_secret
from flagscale.config.source_map import SourceMap
from flagscale.errors import Problem, UserError, nearest

COMMAND_KEYS = {"output": "text", "follow": False}
"""Keys that control the command rather than the job: `output=json`, `follow=true`."""


def load_experiment(config: DictConfig, source_map: SourceMap) -> tuple[Experiment, list[str]]:
    """Return the checked experiment and notices about translated v0.6.0 keys.

    Raises:
        UserError: with every unknown key, wrong type, missing key and unresolvable interpolation at once.
    """
    problems: list[Problem] = []
    tree = _resolved(config, "", (), source_map, problems)
    problems += _base60(tree, source_map)
    notices = v060.translate_experiment(tree, source_map, problems)
    reported = {problem.where for problem in problems}
    section, found = read_section(ExperimentSection, tree.get("experiment"), "experiment", source_map)
    found += _other_groups(tree, source_map)
    # A key whose interpolation failed, or that is `???`, is reported once: not as missing too.
    problems += [problem for problem in found if problem.where not in reported]
    if problems or section is None:
        raise UserError(problems)
    return _experiment(section, tree[section.task.type]), notices


def load_task(config: DictConfig) -> tuple[Task, dict[str, Any]]:
    """Return the task, unchecked, and the engine arguments, empty if they cannot be read.

    Used to report mistakes of both levels at once if the experiment level has some; reports none itself.
    """
    tree = _resolved(config, "", (), SourceMap(), [])
    task = _mapping(_mapping(tree.get("experiment")).get("task"))
    group, backend = task.get("type") or "train", task.get("backend")
    arguments = _mapping(tree.get(group)) if isinstance(group, str) else {}
    entrypoint = str(task.get("entrypoint") or "")
    return Task.model_construct(type=str(group), backend=str(backend or ""), entrypoint=entrypoint), arguments


def read_section[Keys: BaseModel](
    model: type[Keys], raw: object, path: str, source_map: SourceMap
) -> tuple[Keys | None, list[Problem]]:
    """Return the checked group of keys at a path, or None and every problem in it."""
    if not isinstance(raw, dict):
        return None, [Problem("this group is missing", source_map.where(path), "copy one from examples/")]
    try:
        return model.model_validate(raw), []
    except ValidationError as error:
        return None, [_problem(entry, model, path, source_map) for entry in error.errors()]


def _other_groups(tree: dict[str, Any], source_map: SourceMap) -> list[Problem]:
    """Return the problems at the top level: a task type that the engine does not support, a missing task
    group, and unknown keys.
    """
    experiment = _mapping(tree.get("experiment"))
    task = _mapping(experiment.get("task"))
    group, engine = task.get("type") or "train", task.get("backend")
    problems: list[Problem] = []
    is_group_known = bool(experiment) and isinstance(group, str)
    if is_group_known and _is_engine(engine) and group not in (types := _task_types(engine)):
        what, hint = f"the engine `{engine}` does not support `{group}`", f"supported: {', '.join(types)}"
        problems.append(Problem(what, source_map.where("experiment.task.type"), hint))
        is_group_known = False
    if is_group_known and not isinstance(tree.get(group), dict):
        hint = f"add it (defaults: - {group}: NAME), or fix experiment.task.type"
        problems.append(Problem("this task group is missing", source_map.where(group), hint))
    # If the task type is wrong, any group may be the intended one.
    valid = top_keys([group] if is_group_known else [*_task_types(), *_task_types(engine), str(group)])
    problems += [
        Problem(f"unknown key `{key}`", source_map.where(str(key)), nearest(str(key), valid))
        for key in tree
        if key not in valid
    ]
    return problems


def top_keys(groups: Iterable[str] | None = None) -> list[str]:
    """Return the valid names at the top level; `groups` are the task groups (default: the built-in ones)."""
    return ["experiment", "action", *(_task_types() if groups is None else groups), *COMMAND_KEYS]


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


def load_action(config: DictConfig, source_map: SourceMap) -> str:
    """Return the name of the action to perform, which may come from an installed package.

    Raises:
        UserError: if there is no such action; names the valid ones.
    """
    action = _top(config, "action", None)
    if action is None:
        valid = ", ".join(registry.names("actions"))
        raise UserError([Problem("no action given", hint=f"add action=ACTION, one of: {valid}")])
    if not registry.is_known("actions", str(action)):
        hint = nearest(str(action), registry.names("actions"))
        raise UserError([Problem(f"unknown action `{action}`", source_map.where("action"), hint)])
    return str(action)


def load_command_keys(config: DictConfig) -> tuple[bool, bool]:
    """Return (JSON wanted, follow wanted) from `output=` and `follow=`."""
    output, follow = (_top(config, key, default) for key, default in COMMAND_KEYS.items())
    problems = []
    if output not in ("text", "json"):
        problems.append(Problem(f"unknown output `{output}`", "output", "valid: text, json"))
    if not isinstance(follow, bool):
        problems.append(Problem("`follow` must be true or false", "follow"))
    if problems:
        raise UserError(problems)
    return output == "json", bool(follow)


def _top(config: DictConfig, key: str, default: object) -> object:
    try:
        return config.get(key, default)
    except OmegaConfBaseException as error:
        raise UserError([Problem(_first_line(error), key)]) from None


@dataclass(frozen=True)
class RunLocation:
    """Where a run is: all that query, logs and stop need, even if the rest of the YAML is broken."""

    exp_dir: Path
    runner: str
    """The name of its runner, whose rules derive this host's run directory from all of this."""
    node_rank: int | None


def load_run_location(config: DictConfig) -> RunLocation:
    """Return where the run of a configuration is; raises UserError if that cannot be read."""
    exp_dir = _selected(config, "experiment.exp_dir")
    if not isinstance(exp_dir, str) or not exp_dir:
        raise UserError([Problem("a path is required here", "experiment.exp_dir")])
    runner = _selected(config, "experiment.runner.type") or Runner().type
    rank = _selected(config, "experiment.runner.node_rank")
    return RunLocation(_absolute(exp_dir), str(runner), rank if isinstance(rank, int) else None)


def _selected(config: DictConfig, key: str) -> object:
    try:
        return OmegaConf.select(config, key, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError([Problem(_first_line(error), key)]) from None


def _experiment(section: ExperimentSection, arguments: dict[str, Any]) -> Experiment:
    runner = section.runner
    if runner.hostfile is not None:
        runner = runner.model_copy(update={"hostfile": str(_absolute(runner.hostfile))})
    return Experiment(
        name=section.exp_name,
        exp_dir=_absolute(section.exp_dir),
        task=section.task,
        runner=runner,
        envs=section.envs,
        cmds=section.cmds,
        arguments=arguments,
    )


def _absolute(path: str) -> Path:
    return Path(path).expanduser().absolute()


def _resolved(
    node: Any, path: str, parents: tuple[Any, ...], source_map: SourceMap, problems: list[Problem]
) -> Any:
    """Return a config node as plain values, resolved one by one so that every failure is reported."""
    if not isinstance(node, DictConfig | ListConfig):
        return node
    if node._is_none():
        return None
    if any(node is parent for parent in parents):
        problems.append(Problem("the interpolation refers to itself", source_map.where(path)))
        return None
    values = dict(_children(node, path, (*parents, node), source_map, problems))
    return values if isinstance(node, DictConfig) else list(values.values())


def _children(
    node: DictConfig | ListConfig,
    path: str,
    parents: tuple[Any, ...],
    source_map: SourceMap,
    problems: list[Problem],
) -> Iterator[tuple[Any, Any]]:
    keys: list[Any] = list(node.keys()) if isinstance(node, DictConfig) else list(range(len(node)))
    for key in keys:
        child = f"{path}.{key}" if path else str(key)
        if isinstance(node, DictConfig) and not isinstance(key, str) and path.startswith("experiment"):
            what, hint = f"YAML reads this name as {key}", "if it is meant as text, quote it"
            problems.append(Problem(what, source_map.where(child), hint))
            continue
        try:
            if OmegaConf.is_missing(node, key):
                problems.append(Problem("a value is required here (it is `???`)", source_map.where(child)))
                continue
            value = node[key]
        except OmegaConfBaseException as error:
            problems.append(_unresolved(error, source_map.where(child)))
            continue
        yield key, _resolved(value, child, parents, source_map, problems)


_BASE_60 = re.compile(r"[-+]?[1-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?")


def _unresolved(error: OmegaConfBaseException, where: str) -> Problem:
    """Return the problem of an interpolation; `${HOME}` is probably meant as an environment variable."""
    name = re.search(r"Interpolation key '([A-Z_][A-Z0-9_]*)' not found", str(error))
    hint = f"to insert an environment variable of this machine, write ${{oc.env:{name[1]}}}" if name else ""
    return Problem(_first_line(error), where, hint)


def _base60(tree: dict[str, Any], source_map: SourceMap) -> Iterator[Problem]:
    """Yield a problem for each value that YAML 1.1 reads as base 60, although a range or a time is meant."""
    for path, text in source_map.texts.items():
        if not _BASE_60.fullmatch(text):
            continue
        value: Any = tree
        for part in path.split("."):
            if isinstance(value, list) and part.isdigit() and int(part) < len(value):
                value = value[int(part)]
            else:
                value = _mapping(value).get(part)
        where = source_map.where(path)
        if isinstance(value, int | float) and not where.startswith("command line"):
            yield Problem(f"YAML reads `{text}` as the number {value}", where, f'quote it: "{text}"')


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _problem(entry: ErrorDetails, model: type[BaseModel], path: str, source_map: SourceMap) -> Problem:
    """Turn one pydantic error into a message with file, line and the nearest valid name."""
    keys = [str(part) for part in entry["loc"] if part != "[key]"]
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


def _fields(model: type[BaseModel], keys: list[str]) -> list[str]:
    """Return the valid names of the section at `keys` below a model."""
    for key in keys:
        annotation = model.model_fields[key].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
