"""What a command needs besides the job: its action, its own keys, and where the run is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flagscale import registry
from flagscale.config.source_map import SourceMap
from flagscale.errors import Problem, UserError, first_line, nearest

DEFAULT_RUNNER = "ssh"
COMMAND_KEYS: Mapping[str, Sequence[str]] = {
    "output": ("query", "estimate", "checkpoints", "dryrun"),
    "follow": ("query", "logs"),
    "chip": ("estimate", "dryrun", "check", "auto_tune"),
    "picture": ("estimate",),
    "plan": ("estimate",),
    "task_file": ("estimate",),
}
"""The keys that control the command rather than the job, and which of FlagScale's actions take each."""

OUTPUTS: Mapping[str, Sequence[str]] = {
    "text": COMMAND_KEYS["output"],
    "json": ("query", "estimate", "checkpoints"),
    "manifest": ("dryrun",),
}
"""The values of `output`, and which actions take each."""


@dataclass(frozen=True)
class CommandOptions:
    """The values of the keys that control a command."""

    as_json: bool = False
    """`output=json`: print one JSON object for programs instead of text for people."""
    as_manifest: bool = False
    """`output=manifest`: print a manifest for Kubernetes instead."""
    follow: bool = False
    """`follow=true`: go on until the job ends."""
    chip: str = ""
    """`chip=NAME`: the chip of all hosts, for estimates."""
    picture: Path | None = None
    """`picture=FILE.svg`: draw the estimate there."""
    plan: bool = False
    """`plan=auto`: choose the layout."""
    task_file: Path | None = None
    """`task_file=FILE.yaml`: write the chosen layout there, as a task file."""


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


def load_command_keys(config: DictConfig) -> CommandOptions:
    """Return the keys of the command. Raises UserError with every wrong value."""
    given = {key: _top(config, key, None) for key in COMMAND_KEYS}
    output, follow, plan = given["output"] or "text", given["follow"] or False, given["plan"]
    problems = []
    if output not in OUTPUTS:
        problems.append(Problem(f"unknown output `{output}`", "output", f"valid: {', '.join(OUTPUTS)}"))
    if not isinstance(follow, bool):
        problems.append(Problem("`follow` must be true or false", "follow"))
    if plan not in (None, "auto"):
        what = f"`plan` is `{plan}`: the only value is auto, which chooses the layout"
        problems.append(Problem(what, "plan", "remove the key to estimate the layout of the configuration"))
    chip = given["chip"]
    if chip is not None and (not isinstance(chip, str) or not chip):
        problems.append(Problem(f"`chip` must be the name of a chip, not {chip!r}", "chip", "such as H100"))
    files = {key: _file(key, given[key], kind, problems) for key, kind in _FILES.items()}
    if given["task_file"] is not None and plan is None:
        what = "`task_file` is where `plan=auto` writes the layout that it chooses"
        problems.append(Problem(what, "task_file", "add plan=auto, or remove the key"))
    if problems:
        raise UserError(problems)
    return CommandOptions(
        as_json=output == "json",
        as_manifest=output == "manifest",
        follow=bool(follow),
        chip=str(chip or ""),
        picture=files["picture"],
        plan=plan == "auto",
        task_file=files["task_file"],
    )


_FILES = {"picture": ".svg", "task_file": ".yaml"}
"""The keys that name a file to write, and how its name ends."""


def _file(key: str, given: object, ending: str, problems: list[Problem]) -> Path | None:
    if given is None:
        return None
    if not isinstance(given, str) or not given.endswith(ending) or given == ending:
        problems.append(Problem(f"`{key}` must be the path of a file {ending}, not {given!r}", key))
        return None
    path = absolute(given)
    if path.is_dir():
        problems.append(Problem(f"`{key}`: {path} is a folder", key, f"name a file in it: NAME{ending}"))
    return path


def ignored_keys(config: DictConfig, action: str) -> list[str]:
    """Return a notice for each given key of commands that one of FlagScale's actions does not take."""
    if action not in registry.BUILT_IN["actions"]:
        return []  # an action of another package may take any
    given = {key: value for key in COMMAND_KEYS if (value := _top(config, key, None)) is not None}
    takers = {key: (key, COMMAND_KEYS[key]) for key in given}
    if (output := str(given.get("output"))) in OUTPUTS:
        takers["output"] = (f"output={output}", OUTPUTS[output])
    return [
        f"`{word}` has no effect with action={action}; it is for {', '.join(actions)}"
        for word, actions in takers.values()
        if action not in actions
    ]


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
