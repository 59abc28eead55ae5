"""The Hydra entry: compose the configuration, choose the action, turn errors into messages and exit codes."""

from __future__ import annotations

import copy
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from flagscale import __version__, registry
from flagscale.config.command import Request, ignored_keys, load_action
from flagscale.config.flags import key_of, overrides_in, sole_experiment
from flagscale.config.hydra_source import problems_of_files
from flagscale.config.overrides import COMPLAINTS, as_hydra_takes_it, early_problems, problems_of, unreadable
from flagscale.config.source_map import SourceMap, index_sources
from flagscale.config.text_values import restore_texts
from flagscale.errors import FlagScaleError, Problem, UserError
from flagscale.streams import discard_unread, quietly, report_full_disk
from flagscale.sweep import Swept, endless, is_sweep, shared_run_directories, swept_job

# Hydra must not write anything, or leave the current directory, whatever the user's files and words say:
# FlagScale alone writes the run directory, and `dryrun` writes nothing at all.
_QUIET = (
    "hydra.run.dir=.",
    "hydra.sweep.subdir=${hydra.job.num}",
    "hydra.job.chdir=false",
    "hydra.output_subdir=null",
    "hydra/job_logging=disabled",
    "hydra/hydra_logging=disabled",
)
_VERSION = "1.3"
"""The version of Hydra whose rules apply."""
_JOB = "flagscale"
_DEFAULTS = (f"hydra.job.name={_JOB}", "hydra.help.app_name=FlagScale")
_VISIBLE = {"run.dir": ".", "output_subdir": None, "job.chdir": False, "job.name": _JOB, "mode": RunMode.RUN}
"""The same, for a configuration that inserts Hydra's own values (`${hydra:runtime.output_dir}`)."""
_USAGE = """flagscale: train and serve large models on whatever chips you have

    python run.py --config-path FOLDER --config-name FILE action=ACTION [key=value ...]

    FOLDER and FILE   an experiment, e.g. --config-path ./examples/aquila/conf --config-name config
    ACTION            one of {actions}
    key=value         sets a key, whether or not the file has it (a Hydra override), e.g. train.train_iters=9

    flagscale examples [NAME]                   lists the examples, or copies one to ./examples
    flagscale tools                             lists the tools
    flagscale tools/NAME.py [ARGUMENT ...]      runs one

with --config-name, --help prints the composed configuration; --hydra-help lists Hydra's own flags"""
INTERRUPTED = 130
"""The exit code of a command that Ctrl-C or SIGTERM has ended."""
# With this variable set, Hydra raises its errors instead of printing them in its own words.
_RAISE = "HYDRA_FULL_ERROR"
# The first word of a command that needs no experiment; a word with `=` is an override.
_BUNDLED = re.compile(r"examples|tools(/[^=]*)?")
# One of these is needed: the experiment's name, or a request that Hydra answers without one.
_SUBJECTS = ("--config-name", "-cn", "--hydra-help", "--shell-completion", "-sc")


def main(arguments: Sequence[str] | None = None) -> int:
    """Perform the action of a command line (default: of this process) and return the exit code.

    0: success; 1: a failure, or a bug (with its traceback); 2: a user's mistake; 3: nothing was started here;
    130: interrupted. 0 too if the command ends because nobody reads its output any more (`... | head`).
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    return quietly(lambda: _main(words))


def _main(words: list[str]) -> int:
    if words and _BUNDLED.fullmatch(words[0]):
        from flagscale import bundled

        return bundled.main(words)
    if "--version" in words:
        print(f"FlagScale {__version__}")
        return 0
    if not any(word.partition("=")[0] in _SUBJECTS for word in words):
        asked = bool({"--help", "-h"} & {*words}) or not words
        usage = _USAGE.format(actions=", ".join(registry.names("actions")))
        if asked:
            print(usage)
            return 0
        _complain(f"no experiment given\n\n{usage}")
        return UserError.exit_code
    words = as_hydra_takes_it(words)
    if problems := early_problems(words):
        return _print_mistakes(UserError(problems))
    try:
        if not is_sweep(words):
            return _compose(words, _perform, _QUIET)
        if problems := endless(words):
            return _print_mistakes(UserError(problems))
        # Hydra's sweeper always writes a file, which holds the whole configuration.
        with TemporaryDirectory(prefix="flagscale-") as folder:
            return _sweep(words, (*_QUIET, f"hydra.sweep.dir='{folder}'"))
    except SystemExit as stop:  # an unknown flag or package, or a request that has been answered
        if not stop.code:
            return 0
        return UserError.exit_code if _RAISE in os.environ else 1  # 1: a bug, because a job had begun
    except UserError as error:
        return _print_mistakes(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _compose(words: Sequence[str], perform: Callable[[DictConfig], int], quiet: Sequence[str]) -> int:
    """Have Hydra compose each configuration of a command line; return the largest exit code of `perform`.

    Raises:
        UserError: the command line or the files cannot be composed.
    """
    codes: list[int] = []

    def task(config: DictConfig) -> None:
        codes.append(perform(config))
        if codes[-1] == INTERRUPTED:  # the rest of a sweep, too
            raise KeyboardInterrupt

    in_files, error = _with_hydra(words, task, quiet)
    if isinstance(error, OverrideParseException):  # raised before any file was read
        readable = [word for word in words if not unreadable([word])]
        in_files, _ = _with_hydra(readable, lambda config: None, quiet)
        raise UserError([*in_files, *problems_of(error, words)])
    if in_files or error:
        # What a file with a mistake lacks is not another mistake.
        raise UserError(in_files or problems_of(error, words))
    return max(codes, default=0)


def _with_hydra(
    words: Sequence[str], task: Callable[[DictConfig], None], quiet: Sequence[str]
) -> tuple[list[Problem], Exception | None]:
    """Have Hydra call `task` with each configuration, unless a file has a mistake.

    Returns: the mistakes in the form of the files, and the error with which Hydra gave up, if it did.
    """
    in_files = problems_of_files()

    def unless_in_files(config: DictConfig) -> None:
        os.environ.pop(_RAISE, None)  # it does not concern the job
        if not in_files:
            task(config)

    os.environ[_RAISE] = "1"
    others = [word for word in words if not _names(quiet, word)]
    try:
        experiment = sole_experiment(words)
        if not experiment or not _run_once(*experiment, overrides_in(words), unless_in_files):
            sys.argv = [
                sys.argv[0],
                *others,
                *quiet,
                *(word for word in _DEFAULTS if not _names(words, word)),
            ]
            hydra.main(version_base=_VERSION, config_path=None)(unless_in_files)()
    except (*COMPLAINTS, ValueError) as error:  # the latter, too, comes from Hydra alone: `task` raises none
        return list(in_files), error
    return list(in_files), None


def _run_once(folder: str, name: str, overrides: list[str], task: Callable[[DictConfig], None]) -> bool:
    """Do what Hydra's main function does for a single job, unless the files ask for more; return whether it
    was done.

    Hydra would compose twice, the first time only to see whether there are several jobs, and parse the words
    that keep it from writing. That takes longer than all the rest of a `query`. What cannot be composed
    without those words is not done here either: a file may choose a way of logging that is not installed.
    """
    hydra.initialize_config_dir(folder, job_name=_JOB, version_base=_VERSION)
    started = GlobalHydra.instance()
    assert started.hydra
    try:
        try:
            config = started.hydra.compose_config(name, overrides, RunMode.RUN)
        except COMPLAINTS:
            return False
        if config.hydra.mode or config.hydra.callbacks or config.hydra.job.env_set:
            return False
        for key, value in _VISIBLE.items():
            OmegaConf.update(config, f"hydra.{key}", value, force_add=True)
        config.hydra.runtime.output_dir = os.getcwd()
        HydraConfig.instance().set_config(copy.copy(config))  # Hydra's keys may refer to each other
        with open_dict(config):
            del config["hydra"]
        logging.getLogger().setLevel(logging.ERROR)
        task(config)
    finally:
        HydraConfig.instance().cfg = None
        started.clear()
    return True


def _sweep(words: Sequence[str], quiet: Sequence[str]) -> int:
    """Perform the action of every job of a sweep, unless two of them share a run directory."""
    jobs: list[Swept] = []

    def collect(config: DictConfig) -> int:
        restore_texts(config, _source_map())
        jobs.append(swept_job(config, HydraConfig.get().overrides.task))
        return 0

    code = _compose(words, collect, quiet)
    if not jobs:
        raise UserError([Problem("this sweep has no jobs: no file fits", "command line")])
    if problems := shared_run_directories(jobs):
        return _print_mistakes(UserError(problems))
    return code or _compose(words, _perform, quiet)


def _names(words: Sequence[str], override: str) -> bool:
    """Return whether the key of an override is that of one of these words."""
    return key_of(override) in map(key_of, words)


def _perform(config: DictConfig) -> int:
    where = _source_map()
    restore_texts(config, where)
    try:
        action = _action(Request(config, where))
        for notice in ignored_keys(config, action):
            _complain(f"note: {notice}")
        code = registry.load("actions", action)(Request(config, where))
        if not isinstance(code, int):
            source = registry.registered_by("actions", action)
            what = f"the action `{action}` (registered by {source}) returned {code!r}, not an exit code"
            raise FlagScaleError(f"{what}; fix or uninstall the package")
        sys.stdout.flush()
        return code
    except UserError as error:
        return _print_mistakes(error)
    except FlagScaleError as error:
        _complain(f"error: {error}")
        return error.exit_code
    except OSError as error:
        # Not left to `quietly`, because Hydra would complain first.
        if isinstance(error, BrokenPipeError) and discard_unread():
            return 0
        if not report_full_disk(error):
            traceback.print_exc()
        return 1
    except Exception:
        # A bug of ours: print the whole traceback, which Hydra would shorten.
        traceback.print_exc()
        return 1


def _action(request: Request) -> str:
    """Return the name of the action. If there is none, the mistakes of the job are reported with that."""
    try:
        return load_action(request.config, request.source_map)
    except UserError as error:
        problems = list(error.problems)
    from flagscale.plan.prepare import prepare

    try:
        prepare(request, only_plans=True)
    except UserError as error:
        problems += error.problems
    raise UserError(problems)


def _print_mistakes(error: UserError) -> int:
    count = len(error.messages)
    if error.refused:
        _complain(f"{error.refused}: {error.messages[0]}" if count == 1 else f"{error.refused}:\n{error}")
        return error.exit_code
    title = "1 mistake" if count == 1 else f"{count} mistakes"
    _complain(f"{title} in the configuration:\n{error}")
    return error.exit_code


def _complain(text: str) -> None:
    with suppress(OSError):  # even if nobody reads it, the exit code says that there is an error
        print(text, file=sys.stderr)


def _source_map() -> SourceMap:
    """Return where keys are written in the files that Hydra merged: the experiment's and each group's."""
    settings = HydraConfig.get()
    folders = [Path(source.path) for source in settings.runtime.config_sources if source.schema == "file"]
    files: list[tuple[Path, str]] = []
    for folder in folders:
        for group, choice in settings.runtime.choices.items():
            name, _, package = str(group).partition("@")
            if not name.startswith("hydra") and choice:
                file = f"{str(choice).removesuffix('.yaml')}.yaml"
                files.append((folder / name / file, package or name.replace("/", ".")))
        name = str(settings.job.config_name or "").removesuffix(".yaml")
        files.append((folder / f"{name}.yaml", ""))
    return index_sources(files, settings.overrides.task)
