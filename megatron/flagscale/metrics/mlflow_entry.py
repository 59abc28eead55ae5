"""The entry of a training in MLflow (a run there): begin or continue it, and mark how it ended.

The last rank marks it as finished. When a rank fails or the job is stopped, the ranks end at once: then the
agent (torchrun) on the host of the last rank marks the run.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flagscale.checks.tracking import RUN_FILE
from flagscale.files import write_atomic
from flagscale.formats import option_of

FINISHED, FAILED, KILLED = "FINISHED", "FAILED", "KILLED"
"""MLflow's words for how a run ended."""
_LIMITS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
"""The client's defaults are 120 seconds and 7 tries."""
_TO_MARK = 5.0
"""Seconds that the agent waits for the server."""


@dataclass(frozen=True)
class Target:
    """Where to send figures: the server, the experiment, the run, and the file with the run's id."""

    uri: str
    experiment: str
    run_name: str | None
    run_file: Path | None


@dataclass(frozen=True)
class Entry:
    """What the file with the id holds. `host` and `agent` (a process id) are those of the newest start."""

    tracking_uri: str
    experiment_id: str
    run_id: str
    host: str = ""
    agent: int = 0


def client_of(uri: str) -> Any:
    """Return MLflow's client of a server, which gives up soon if the server does not answer."""
    for name, limit in _LIMITS.items():
        os.environ.setdefault(name, limit)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def begin(client: Any, target: Target) -> tuple[str, bool]:
    """Return the id of the run that an earlier start began, or of a new one, and whether it is new.

    Record it with this process's parent, the agent. Raises what the client raises.
    """
    found = client.get_experiment_by_name(target.experiment)
    experiment = str(found.experiment_id if found else client.create_experiment(target.experiment))
    earlier = _read(target.run_file) if target.run_file else None
    is_new = not earlier or (earlier.tracking_uri, earlier.experiment_id) != (target.uri, experiment)
    if earlier and not is_new:
        run_id = earlier.run_id
        client.update_run(run_id, status="RUNNING")
    else:
        run_id = str(client.create_run(experiment, run_name=target.run_name).info.run_id)
    if target.run_file:
        run = Entry(target.uri, experiment, run_id, socket.gethostname(), os.getppid())
        write_atomic(target.run_file, json.dumps(asdict(run)) + "\n")
    return run_id, is_new


def mark_ended(argv: Sequence[str], status: str) -> None:
    """Mark the run of the ranks that this agent has started with `argv`, if the last rank was one of them.

    A server that does not answer within 5 seconds keeps the run as it is, which is printed.
    """
    option = option_of(RUN_FILE)
    places = [at for at, word in enumerate(argv[:-1]) if word == option]
    run = _read(Path(argv[places[-1] + 1])) if places else None
    if run is None or (run.host, run.agent) != (socket.gethostname(), os.getpid()):
        return
    fault = _marked(run, status)
    if fault:
        what = f"the run in MLflow at {run.tracking_uri} is not marked as {status}"
        print(f"flagscale: {what}: {fault}", flush=True)


def _marked(run: Entry, status: str) -> str:
    """Mark a run; return why that failed, or ""."""
    faults = [f"no answer within {_TO_MARK:g} s"]

    def mark(client: Any) -> None:
        try:
            client.set_terminated(run.run_id, status=status)
            faults.clear()
        except Exception as error:  # whatever the client raises must not change how the agent ends
            faults[:] = [error_text(error)]

    try:
        client = client_of(run.tracking_uri)  # importing it may take longer than the request
    except Exception as error:
        return error_text(error)
    thread = threading.Thread(target=mark, args=(client,), daemon=True)
    thread.start()
    thread.join(_TO_MARK)
    return faults[0] if faults else ""


def error_text(error: Exception) -> str:
    """Return what the client has raised as one line, which is not too long for a log."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _read(file: Path) -> Entry | None:
    """Return what the file of a run holds; None if it is missing or is something else."""
    with suppress(OSError, ValueError, TypeError):
        run = Entry(**json.loads(file.read_text(encoding="utf-8")))
        return run if all(isinstance(one, str) for one in (run.tracking_uri, run.run_id)) else None
    return None
