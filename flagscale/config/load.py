"""Strict loading: a composed configuration becomes a frozen `Experiment`, or one error with every mistake."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from flagscale.config import v060
from flagscale.config.locate import Locator
from flagscale.config.schema import ACTIONS, Experiment, ExperimentSection
from flagscale.errors import Problem, UserError, nearest

COMMAND_KEYS = {"output": "text", "follow": False}
"""Keys that steer the command rather than the job: `+output=json`, `+follow=true`."""


def load_experiment(config: DictConfig, locator: Locator) -> tuple[Experiment, list[str]]:
    """Return the checked experiment and notices about translated v0.6.0 keys.

    Raises:
        UserError: with every unknown key, wrong type, missing key and unresolvable interpolation at once.
    """
    problems: list[Problem] = []
    tree = _resolved(config, "", locator, problems)
    # An interpolation that fails is told once; the key counts as present so that it is not told as missing too.
    notices = v060.translate_experiment(tree, locator, problems)
    raw = tree.get("experiment")
    task = raw.get("task") if isinstance(raw, dict) else None
    task_type = task.get("type", "train") if isinstance(task, dict) else "train"
    for key in tree.keys() - {"experiment", "action", task_type} - COMMAND_KEYS.keys():
        valid = ["experiment", "action", str(task_type), *COMMAND_KEYS]
        problems.append(Problem(f"unknown key `{key}`", locator.where(key), nearest(key, valid)))
    section = None
    if not isinstance(raw, dict):
        problems.append(Problem("the group `experiment` is missing", hint="copy one from examples/"))
    else:
        failed = {problem.where for problem in problems}
        try:
            section = ExperimentSection.model_validate(raw)
        except ValidationError as error:
            told = (_problem(dict(entry), locator) for entry in error.errors())
            problems.extend(problem for problem in told if problem.where not in failed)
    arguments = tree.get(task_type)
    if isinstance(raw, dict) and not isinstance(arguments, dict):
        hint = f"add a group `{task_type}` (defaults: - {task_type}: NAME), or mend experiment.task.type"
        problems.append(Problem(f"the task group `{task_type}` is missing", hint=hint))
    if problems or section is None or not isinstance(arguments, dict):
        raise UserError(problems)
    return _experiment(section, arguments), notices


def load_action(config: DictConfig, locator: Locator) -> str:
    """Return the action to perform; a `UserError` names the valid ones."""
    action = config.get("action")
    if action is None:
        raise UserError([Problem("no action given", hint=f"action=A with A one of {', '.join(ACTIONS)}")])
    if action not in ACTIONS:
        raise UserError(
            [Problem(f"unknown action `{action}`", locator.where("action"), nearest(str(action), ACTIONS))]
        )
    return str(action)


def load_command_keys(config: DictConfig) -> tuple[bool, bool]:
    """Return (JSON wanted, follow wanted) from `+output=` and `+follow=`."""
    output, follow = config.get("output", "text"), config.get("follow", False)
    problems = []
    if output not in ("text", "json"):
        problems.append(Problem(f"unknown output `{output}`", "output", "valid: text, json"))
    if not isinstance(follow, bool):
        problems.append(Problem("follow is true or false", "follow"))
    if problems:
        raise UserError(problems)
    return output == "json", bool(follow)


def load_exp_dir(config: DictConfig) -> Path:
    """Return the run directory alone: query, logs and stop work also when the rest of the YAML is broken."""
    try:
        exp_dir = OmegaConf.select(config, "experiment.exp_dir", throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError([Problem(_first_line(error), "experiment.exp_dir")]) from None
    if not isinstance(exp_dir, str) or not exp_dir:
        raise UserError([Problem("a path is needed here", "experiment.exp_dir")])
    return _absolute(exp_dir)


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


def _resolved(node: Any, path: str, locator: Locator, problems: list[Problem]) -> Any:
    """Turn a config node into plain values, leaf by leaf, so that every failing interpolation is told."""
    if not isinstance(node, DictConfig | ListConfig):
        return node
    if node._is_none():
        return None
    values = dict(_children(node, path, locator, problems))
    return values if isinstance(node, DictConfig) else list(values.values())


def _children(
    node: DictConfig | ListConfig, path: str, locator: Locator, problems: list[Problem]
) -> Iterator[tuple[Any, Any]]:
    for key in list(node.keys()) if isinstance(node, DictConfig) else range(len(node)):
        child = f"{path}.{key}" if path else str(key)
        try:
            if OmegaConf.is_missing(node, key):
                problems.append(Problem("a value is required here (it is `???`)", locator.where(child)))
                continue
            value = node[key]
        except OmegaConfBaseException as error:
            problems.append(Problem(_first_line(error), locator.where(child)))
            continue
        yield key, _resolved(value, child, locator, problems)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _problem(entry: dict[str, Any], locator: Locator) -> Problem:
    """Turn one pydantic error into a message with file, line and the nearest valid name."""
    parts = [str(part) for part in entry["loc"] if part != "constrained-int"]
    kind = entry["type"]
    keys = [part for part in parts if not part.startswith(("literal[", "function-", "int", "float"))]
    where = locator.where(".".join(["experiment", *keys]))
    if kind == "extra_forbidden":
        return Problem(f"unknown key `{keys[-1]}`", where, nearest(keys[-1], _fields(keys[:-1])))
    if kind == "missing":
        return Problem(f"the key `{keys[-1]}` is required", where)
    message = entry["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    shown = entry["input"] if isinstance(entry["input"], str | int | float | bool) else None
    return Problem(message if shown is None else f"{message} (it is {shown!r})", where)


def _fields(keys: list[str]) -> list[str]:
    """Return the valid names of the section at `keys` below `experiment`."""
    model: type[BaseModel] = ExperimentSection
    for key in keys:
        annotation = model.model_fields[key].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return list(model.model_fields)
