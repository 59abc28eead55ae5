"""The keys `tasks` and `include_path`: the tasks to run, by name, by pattern, or as local YAML files."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flagscale.engines.lm_eval.catalog import harness_catalog
from flagscale.engines.lm_eval.task_files import TaskFile, read_task_file, task_files_in
from flagscale.errors import closest

Report = Callable[[str, str, str], None]
"""Takes (key, what is wrong with it, how to fix it)."""
_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class TaskChoice:
    """The tasks to run; `files`: those of the user, as far as they can be read here."""

    wanted: tuple[str, ...] = ()
    include_path: str = ""
    files: tuple[TaskFile, ...] = ()

    @property
    def are_local(self) -> bool:
        """Whether all tasks are the user's own and read local files: nothing has to be downloaded."""
        return bool(self.wanted) and all(any(one.is_local for one in self._of(name)) for name in self.wanted)

    @property
    def needing_probabilities(self) -> list[str]:
        """The user's tasks that a chat endpoint cannot run."""
        return [name for name in self.wanted if any(one.needs_probabilities for one in self._of(name))]

    def showing_answers(self, num_fewshot: int | None) -> list[str]:
        """Return the user's tasks that may show the asked question, with its answer, as an example.

        Args:
            num_fewshot: number of examples, which counts unless a file asks for 0; None: that of the file.
        """

        def shows(file: TaskFile) -> bool:
            counts = num_fewshot is not None and file.num_fewshot != 0
            return bool(num_fewshot if counts else file.num_fewshot) and file.asks_its_examples

        return [name for name in self.wanted if any(map(shows, self._of(name)))]

    def _of(self, name: str) -> list[TaskFile]:
        return [one for one in self.files if fnmatch.filter(one.names, name) or Path(name) == one.path]


def read_tasks(wanted: list[str], include_path: str, is_here: bool, report: Report) -> TaskChoice:
    """Return the tasks, and report every mistake; `is_here`: the job's files are on this machine."""
    files: list[TaskFile] = []
    if include_path and is_here:
        files += _included(include_path, report)
    known = {*harness_catalog().tasks, *(name for one in files for name in one.names)}
    for name in wanted:
        if name.endswith(_SUFFIXES):
            if is_here:
                files.append(_named(name, report))
        elif is_here and os.path.isdir(name) and name not in known:
            report("tasks", f"{name} is a folder", "name it in `include_path`, and its tasks here")
        elif any(letter in name for letter in "*?["):
            if is_here and not fnmatch.filter(known, name):
                report("tasks", f"no task matches `{name}`", "")
        elif name not in known and (is_here or not include_path):
            close = closest(name, known)
            hint = f"did you mean `{close}`?" if close else "a task of your own: give `include_path`"
            report("tasks", f"unknown task `{name}`", hint)
    return TaskChoice(tuple(dict.fromkeys(wanted)), include_path, tuple(files))


def _included(folder: str, report: Report) -> list[TaskFile]:
    if not os.path.isdir(folder):
        report("include_path", f"{folder}: no such folder", "")
        return []
    files = [*task_files_in(Path(folder))]
    for one in files:
        for what in one.problems:
            report("include_path", what, "")
    if not any(one.names for one in files) and not any(one.problems for one in files):
        report("include_path", f"{folder}: no .yaml file in it has a `task` or a `group`", "")
    return files


def _named(path: str, report: Report) -> TaskFile:
    found = read_task_file(Path(path))
    for what in found.problems:
        report("tasks", what, "")
    if not found.names and not found.problems:
        report("tasks", f"{path}: it has no `task` or `group`, which names the task", "")
    return found
