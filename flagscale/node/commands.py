"""What a launcher asks of a host: commands that return plain JSON values, called here or remotely."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from flagscale.errors import FlagScaleError
from flagscale.job import LaunchPlan, NodeCommand
from flagscale.launch.rundir import RunDir
from flagscale.node.probe import probe
from flagscale.node.start import start
from flagscale.node.state import Reply
from flagscale.node.status import status
from flagscale.node.stop import stop

_OF_A_PLAN: Mapping[str, Callable[..., Reply]] = {"start": start, "stop": stop, "status": status}
"""Called with the plan, this host's part of it, and the words after the run directory and the host's rank."""


def execute(words: list[str]) -> Reply:
    """Perform one command; an expected failure becomes {"ok": False, "message": ...}."""
    verb, *arguments = words
    try:
        if verb == "probe":
            return probe(*arguments)
        exp_dir, rank, *more = arguments
        return _OF_A_PLAN[verb](*load(exp_dir, rank), *more)
    except FlagScaleError as error:
        return {"ok": False, "message": str(error)}
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return {"ok": False, "message": f"cannot {verb}: {place}{error.strerror}"}
    except psutil.Error as error:
        return {"ok": False, "message": f"cannot {verb}: {error}"}


def load(exp_dir: str, rank: str) -> tuple[LaunchPlan, NodeCommand]:
    """Return the recorded plan and this host's part of it."""
    plan = RunDir(Path(exp_dir)).read_plan()
    if plan is None:
        raise FlagScaleError(f"no job was started in {exp_dir}")
    return plan, plan.nodes[int(rank)]
