"""Send the figures of metrics.jsonl to MLflow (`mlflow_tracking_uri`).

A thread of its own sends them, for which the training does not wait. A server that does not answer is
reported once; figures wait for it, up to a limit.
"""

from __future__ import annotations

import argparse
import atexit
import importlib
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from flagscale.checks.tracking import EXPERIMENT, RUN_FILE, RUN_NAME, URI
from flagscale.formats import option_of
from megatron.flagscale.metrics.mlflow_entry import FINISHED, KILLED, Target, begin, client_of, error_text

_EVERY, _AFTER_FAILURE, _AT_END = 2.0, 30.0, 15.0
"""Seconds between two batches, after one that failed, and for the rest at the end of the training."""
_MOST_WAITING, _RECORDS = 10_000, 100
"""Records that wait at most (others are lost, and counted), and those that are sent together."""
_METRICS, _PARAMETERS = 1000, 100
"""What the server accepts in one request."""
_MOST_CHARACTERS = 500
"""Of a parameter's value: what every version of the server accepts."""
_NOT_FIGURES = ("iteration", "train_iters", "time")


def add_tracking_args(group: argparse._ArgumentGroup) -> None:
    """Add the arguments for MLflow; their names are those of Megatron Bridge."""
    for name, meaning in (
        (URI, "Also send all figures to this MLflow server; user and password only by the environment."),
        (EXPERIMENT, "The experiment of MLflow to which the run belongs; it is created if missing."),
        (RUN_NAME, "The run's name in MLflow."),
        (RUN_FILE, "Holds the id of the run in MLflow, with which a run that resumes continues it."),
    ):
        group.add_argument(option_of(name), metavar="TEXT", help=meaning)


class Tracking:
    """Sends records to MLflow in a thread of its own; `finish` sends the rest.

    `parameters` are those of the run, if it is a new one. `is_complete` says, at the end, whether the
    training has done all of its iterations.
    """

    def __init__(
        self, target: Target, parameters: Mapping[str, Any], is_complete: Callable[[], bool] = lambda: True
    ) -> None:
        self._target, self._is_complete = target, is_complete
        self._parameters = [
            (name, str(value)[:_MOST_CHARACTERS]) for name, value in sorted(parameters.items())
        ]
        self._waiting: deque[Mapping[str, Any]] = deque(maxlen=_MOST_WAITING)
        self._ending = threading.Event()
        self._has_reported, self._lost = False, 0
        self._client: Any = None
        self._run_id = ""
        self._thread = threading.Thread(target=self._work, name="sends figures to MLflow", daemon=True)
        self._thread.start()

    def add(self, record: Mapping[str, Any]) -> None:
        """Send a line of metrics.jsonl later."""
        self._lost += len(self._waiting) == _MOST_WAITING
        self._waiting.append(record)

    def finish(self) -> None:
        """Send what waits, for `_AT_END` seconds at most, and mark the run: as killed if it ends early."""
        self._ending.set()
        self._thread.join(_AT_END)
        if left := self._lost + len(self._waiting):
            print(f"flagscale: MLflow lacks {left} of the lines in metrics.jsonl", flush=True)

    def _work(self) -> None:
        pause = _EVERY
        while True:
            is_last = self._ending.wait(pause)
            try:
                self._send()
                if is_last:
                    self._client.set_terminated(
                        self._run_id, status=FINISHED if self._is_complete() else KILLED
                    )
                pause = _EVERY
            except Exception as error:  # whatever its client raises must not end the training
                self._report(error)
                pause = _AFTER_FAILURE
            if is_last:
                return

    def _send(self) -> None:
        """Send the records that wait; those that cannot be sent wait again. Raises what the client raises."""
        if self._client is None:
            self._client = client_of(self._target.uri)
        if not self._run_id:
            self._run_id, is_new = begin(self._client, self._target)
            self._parameters = self._parameters if is_new else []
        while part := self._parameters[:_PARAMETERS]:
            self._client.log_batch(self._run_id, params=_params(part))
            del self._parameters[:_PARAMETERS]
        while batch := [self._waiting.popleft() for _ in range(min(_RECORDS, len(self._waiting)))]:
            rows = [row for record in batch for row in _metrics(record)]
            try:
                for first in range(0, len(rows), _METRICS):
                    self._client.log_batch(self._run_id, metrics=rows[first : first + _METRICS])
            except Exception:
                self._lost += max(0, len(batch) + len(self._waiting) - _MOST_WAITING)
                self._waiting.extendleft(reversed(batch))
                raise

    def _report(self, error: Exception) -> None:
        if not self._has_reported:
            self._has_reported = True
            what = f"MLflow at {self._target.uri}: {error_text(error)}"
            rest = "the training continues, and metrics.jsonl has all figures"
            print(f"flagscale: {what}; {rest} (reported once)", flush=True)


def tracking_of(args: Any, parameters_of: Callable[[Any], Mapping[str, Any]]) -> Tracking | None:
    """Return the tracking that the arguments ask for, which ends with the process; None if they do not.

    `parameters_of` returns, from the arguments, the parameters of the run in MLflow.
    """
    values = vars(args)
    if not values.get(URI):
        return None
    # It takes seconds of computing: in the other thread, it would slow down the iterations of this rank.
    with suppress(ImportError):  # which the thread reports
        importlib.import_module("mlflow")
    file = values.get(RUN_FILE)
    target = Target(
        values[URI], values.get(EXPERIMENT) or "flagscale", values.get(RUN_NAME), Path(file) if file else None
    )

    def is_complete() -> bool:
        # The trainer counts from 0. Without a training (`skip_train`) there is no current iteration.
        done = getattr(args, "curr_iteration", args.train_iters) + 1
        return bool(done >= args.train_iters)

    tracking = Tracking(target, parameters_of(args), is_complete)
    atexit.register(tracking.finish)
    return tracking


def _params(pairs: Sequence[tuple[str, str]]) -> list[Any]:
    from mlflow.entities import Param

    return [Param(name, value) for name, value in pairs]


def _metrics(record: Mapping[str, Any]) -> list[Any]:
    from mlflow.entities import Metric

    time, step = round(record["time"] * 1000), record["iteration"]
    return [Metric(name, value, time, step) for name, value in figures(record)]


def figures(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the figures of a line of metrics.jsonl by their names there; None is no figure, NaN is one."""
    for name, value in record.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and name not in _NOT_FIGURES and not math.isinf(value):
            yield name, float(value)
