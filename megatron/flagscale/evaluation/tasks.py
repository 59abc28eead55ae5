"""The tasks of an evaluation: their names in the harness's index, and mistakes in the user's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flagscale.errors import Problem, UserError, first_line, nearest


def tasks_of(settings: Any) -> tuple[Any, list[str]]:
    """Return the harness's index of tasks, and the tasks to run, with patterns replaced by what they match.

    Reading the harness's 14 000 files takes many seconds: its own tasks are left out if all are the user's.
    The user's are loaded here, so that their mistakes are reported before a model is converted.

    Raises:
        UserError: a task is unknown, or one of the user's cannot be loaded (lists all).
    """
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Kind

    wanted = [*dict.fromkeys(settings.tasks)]
    where = {"include_path": settings.include_path, "metadata": settings.metadata}
    own = TaskManager(include_defaults=False, **where)
    kinds = {name: entry.kind for name, entry in own.task_index.items()}
    if problems := [
        problem
        for task in wanted
        if kinds.get(task) is Kind.TASK or Path(task).is_file()
        for problem in _mistakes(own, task)
    ]:
        raise UserError(problems)
    if all(kinds.get(task) is Kind.TASK or Path(task).is_file() for task in wanted):
        return own, wanted
    every = TaskManager(**where)
    found: list[str] = []
    for task in wanted:
        matching = [task] if Path(task).is_file() else every.match_tasks([task])
        if not matching:
            raise UserError(f"unknown task `{task}` (tasks, include_path)")
        found += matching
    return every, [*dict.fromkeys(found)]


def _mistakes(index: Any, name: str) -> Iterator[Problem]:
    """Yield what is wrong with a task of the user; the harness tries its prompt on the first example."""
    from lm_eval.api.registry import metric_registry

    try:
        loaded = index.load([name])["tasks"]
    except OSError:  # of the network or a disk, which may be gone when the job is restarted
        raise
    except Exception as error:  # whatever the keys of a task or its functions may raise
        yield Problem(f"task `{name}` cannot be loaded: {type(error).__name__}: {first_line(error)}")
        return
    for task in loaded.values():
        for metric, function in task._metric_fn_list.items():
            if function is None and task.config.process_results is None:
                yield Problem(
                    f"task `{name}`: unknown metric `{metric}`", "", nearest(metric, metric_registry)
                )
