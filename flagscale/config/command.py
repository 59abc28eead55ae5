"""What a command needs besides the job: its action, its own keys, and where the run is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flagscale import registry
from flagscale.config.source_map import SourceMap
from flagscale.errors import Problem, UserError, first_line, nearest

DEFAULT_RUNNER = "ssh"
COMMAND_KEYS = {"output": "text", "follow": False}
"""Keys that control the command rather than the job: `output=json`, `follow=true`."""


@dataclass(frozen=True)
class Request:
    """The input of a command: the composed configuration and the source of each key."""

    config: DictConfig
    source_map: SourceMap


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
        raise UserError([Problem(first_line(error), key)]) from None


@dataclass(frozen=True)
class RunLocation:
    """Where a run is: all that query, logs and stop need, even if the rest of the YAML is broken."""

    exp_dir: Path
    runner: str
    """The name of its runner, whose rules derive this host's run directory from all of this."""
    node_rank: int | None


_NOWHERE = SourceMap()


def load_run_location(config: DictConfig, source_map: SourceMap = _NOWHERE) -> RunLocation:
    """Return where the run of a configuration is; raises UserError if that cannot be read."""
    exp_dir = _selected(config, "experiment.exp_dir", source_map)
    if not isinstance(exp_dir, str) or not exp_dir:
        raise UserError([Problem("a path is required here", source_map.where("experiment.exp_dir"))])
    try:
        folder = absolute(exp_dir)
    except RuntimeError as error:
        raise UserError([Problem(str(error), source_map.where("experiment.exp_dir"))]) from None
    runner = _selected(config, "experiment.runner.type", source_map) or DEFAULT_RUNNER
    rank = _selected(config, "experiment.runner.node_rank", source_map)
    return RunLocation(folder, str(runner), rank if isinstance(rank, int) else None)


def _selected(config: DictConfig, key: str, source_map: SourceMap) -> object:
    try:
        return OmegaConf.select(config, key, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError([Problem(first_line(error), source_map.where(key))]) from None


def absolute(path: str) -> Path:
    return Path(path).expanduser().absolute()
