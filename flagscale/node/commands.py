"""The verbs, the launcher's requests to a host. They return plain JSON values, called locally or remotely."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TextIO

from flagscale import __version__
from flagscale.errors import FlagScaleError
from flagscale.files import write_atomic
from flagscale.run.machine import elsewhere
from flagscale.run.rundir import RunDir
from flagscale.run.state import Reply
from flagscale.values import LaunchPlan, NodeCommand


def _later(module: str, name: str) -> Callable[..., Reply]:
    """Return a command whose module is imported when it is called: a session needs only a few of them."""

    def call(*words: object) -> Reply:
        reply: Reply = getattr(import_module(f"flagscale.node.{module}"), name)(*words)
        return reply

    return call


_OF_A_HOST: Mapping[str, Callable[..., Reply]] = {
    "ready": lambda: {"ok": True},
    "probe": _later("probe", "probe"),
    "put": _later("files", "put"),
    "vacant": _later("start", "vacant"),
    "listen": _later("probe", "listen_for"),
    "dial": _later("probe", "dial"),
}
"""Called with the words after the verb."""
_OF_A_PLAN: Mapping[str, Callable[..., Reply]] = {
    "start": _later("start", "start"),
    "outcome": _later("start", "outcome"),
    "stop": _later("stop", "stop"),
    "status": _later("status", "status"),
    "begin": _later("files", "begin"),
    "read": _later("files", "read"),
}
"""Called with the plan, this host's part of it, and the words after run directory, host rank and run id."""
_LATE = (0.0, 0.5, 1.5)
"""Seconds to pause before each further search for a plan."""
_WITHOUT_PLAN: Mapping[str, Callable[..., Reply]] = {
    "stop": _later("stop", "stop_without_plan"),
    "status": _later("status", "status_without_plan"),
}
"""Called with run id and host rank if this host does not see the plan of the run."""


def execute(words: list[str]) -> Reply:
    """Perform one command; an expected failure becomes {"ok": False, "message": ...}."""
    verb, *arguments = words
    try:
        if verb in _OF_A_HOST:
            return _OF_A_HOST[verb](*arguments)
        exp_dir, rank, run_id, *more = arguments
        try:
            # Also for `stop`, which must not miss a start that is still looking for its plan.
            find = _load_late if verb in ("start", "stop") else load
            plan, node = find(exp_dir, rank, run_id)
        except NotStarted as error:
            if verb not in _WITHOUT_PLAN:
                return {"ok": False, "message": str(error)}
            return _WITHOUT_PLAN[verb](run_id, int(rank))
        return _OF_A_PLAN[verb](plan, node, *more)
    except Exception as error:
        return _failed(verb, error)


def _failed(verb: str, error: Exception) -> Reply:
    """Return the reply that reports an expected failure; any other error is raised again."""
    if isinstance(error, FlagScaleError):
        return {"ok": False, "message": str(error)}
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return {"ok": False, "message": f"cannot {verb}: {place}{error.strerror}"}
    psutil = sys.modules.get("psutil")  # not imported here, because a session that starts a job does without
    if psutil is None or not isinstance(error, psutil.Error):
        raise error
    return {"ok": False, "message": f"cannot {verb}: {error}"}


def _load_late(exp_dir: str, rank: str, run_id: str) -> tuple[LaunchPlan, NodeCommand]:
    """Load a plan that was written a moment ago on another host.

    A network file system may keep reporting that a directory does not exist if this host asked before it was
    created; listing the parent directory makes it look again.
    """
    for pause in _LATE:
        try:
            return load(exp_dir, rank, run_id)
        except NotStarted:
            time.sleep(pause)
            for above in reversed(RunDir(Path(exp_dir)).plan.parents):
                with suppress(OSError), os.scandir(above) as entries:
                    next(entries, None)
    return load(exp_dir, rank, run_id)


class NotStarted(FlagScaleError):
    """The run directory, as seen by this host, does not hold the plan of the run."""


def load(exp_dir: str, rank: str, run_id: str) -> tuple[LaunchPlan, NodeCommand]:
    """Return the recorded plan of exactly this run, and this host's part of it.

    Paths are as they are on this host.

    Raises:
        NotStarted: there is no plan here, or it is another run's.
        FlagScaleError: the run belongs to another machine.
    """
    plan = RunDir(Path(exp_dir)).read_plan()
    if plan is None or plan.run_id != run_id:
        raise NotStarted(
            f"this host does not see the plan of run {run_id} in {exp_dir}; if the hosts do not share that "
            "file system, set experiment.runner.no_shared_fs: true"
        )
    host = plan.node(int(rank)).host
    if other := elsewhere(plan, host):
        raise FlagScaleError(f"run {run_id} was started on {other.name}; run this command there")
    there = plan.on_host(host.name)
    return there, there.node(host.rank)


def task(exp_dir: str, rank: str, run_id: str) -> int:
    """Supervise this host's share of a run as a task of a batch system; return the exit code of the agent.

    `run_tags` must be in the environment with which this process was executed.

    Raises:
        FlagScaleError, OSError: the plan is not seen here, or this process cannot become the supervisor.
    """
    from flagscale.node.start import supervise_from_session, supervise_script

    plan, node = _load_late(exp_dir, rank, run_id)
    if plan.before_start:  # needs a shell
        return supervise_script(plan, node)
    return supervise_from_session(plan, node, lambda reply: None)


QUESTIONS = "questions.json"
"""The file of a folder that holds the words of one node command per host rank; the replies are RANK.json."""


def answer(folder: str, rank: str) -> int:
    """Perform the command that a file names for this host, and write the reply beside it."""
    words: list[str] = json.loads(Path(folder, QUESTIONS).read_text(encoding="utf-8"))[rank]
    write_atomic(Path(folder, f"{rank}.json"), json.dumps(execute(words)))
    return 0


HELLO = "flagscale"
"""The key that distinguishes the first line from anything that the user's shell prints before it."""


def serve(supervises: list[str] | None = None) -> int:
    """Answer requests until the launcher disconnects.

    Args:
        supervises: host rank and id of the run that this process supervises as soon as it is asked to start
            it; `run_tags` must be in the environment with which it was executed.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8", errors="surrogateescape")
    # Output of other code must not be mistaken for an answer.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # On a line of its own: the shell may have printed text without an end of line, such as a title.
    answers.write("\n" + json.dumps({HELLO: __version__}) + "\n")
    answers.flush()
    for line in sys.stdin:
        words: list[str] = json.loads(line)
        if supervises and words[0] == "start" and words[2:] == supervises:
            return _supervise(words, answers)
        if supervises and words[0] != "ready":  # which imports nothing
            if code := _in_child(lambda words=words: _answer(words, answers)):  # type: ignore[misc]
                return code
        else:
            _answer(words, answers)
    return 0


def _answer(words: list[str], answers: TextIO) -> None:
    answers.write(json.dumps(execute(words)) + "\n")
    answers.flush()


def _in_child(work: Callable[[], None]) -> int:
    """Do the work in a child process, and return its exit code: 0, unless there is a bug.

    What the work imports would stay in the memory of a future supervisor for as long as the job runs.
    """
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    work()
    os._exit(0)


def _supervise(words: list[str], answers: TextIO) -> int:
    """Become the supervisor; the launcher gets one answer, and the job does not depend on its arrival."""

    def answer(reply: Reply) -> None:
        if answers.closed:
            return
        if reply.get("stopped"):
            os.dup(answers.fileno())  # the launcher sees the connection end when this process has ended
        with suppress(OSError):
            answers.write(json.dumps(reply) + "\n")
        with suppress(OSError):
            answers.close()

    verb, exp_dir, rank, run_id = words
    try:
        from flagscale.node.start import supervise_from_session

        return supervise_from_session(*_load_late(exp_dir, rank, run_id), answer)
    except Exception as error:
        if answers.closed:
            raise  # the start is over: the log of the run holds the message
        answer(_failed(verb, error))
        return 1
