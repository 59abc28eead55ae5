"""The run directory: the one owner of every path below `experiment.exp_dir`."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flagscale.errors import FlagScaleError
from flagscale.files import write_atomic
from flagscale.job import Host, LaunchPlan


@dataclass(frozen=True)
class RunDir:
    """Names every file of a run; creating one touches nothing."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def details(self, host: Host) -> Path:
        """torchrun's folder for the streams of each rank."""
        return self.logs / "details" / host.label

    def run_script(self, host: Host) -> Path:
        return self.logs / "scripts" / f"{host.label}_run.sh"

    def stop_script(self, host: Host) -> Path:
        return self.logs / "scripts" / f"{host.label}_stop.sh"

    def output(self, host: Host) -> Path:
        """Everything that the processes of a host print; runs are appended, each behind a header line."""
        return self.logs / f"{host.label}.output"

    def state(self, host: Host) -> Path:
        return self.logs / "pids" / f"{host.label}.json"

    def failure(self, host: Host) -> Path:
        """What the launcher of the ranks tells of the rank that failed first."""
        return self.logs / "pids" / f"{host.label}.failure.json"

    def secrets(self, host: Host) -> Path:
        """Secret environment on its way to the supervisor, which deletes it when read."""
        return self.logs / "pids" / f"{host.label}.secrets.json"

    def read_plan(self) -> LaunchPlan | None:
        """Return the plan of the newest start, None where nothing was started.

        Raises:
            FlagScaleError: there is a plan, but it cannot be read.
        """
        try:
            return LaunchPlan.from_json(self.plan.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise FlagScaleError(f"{self.plan}: {error}") from None

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Hold the run directory while a job is being started in it, against a second launcher.

        The kernel drops the lock with the process, so a killed launcher leaves none behind.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
        except BlockingIOError:
            raise FlagScaleError(f"another command is starting a job in {self.path}; wait for it") from None
        finally:
            os.close(handle)

    def write_launch(self, plan: LaunchPlan, scripts: dict[Path, str], config: str) -> None:
        """Record one start: the resolved configuration, the scripts, and last the plan that names them."""
        write_atomic(self.config, config)
        for path, text in scripts.items():
            write_atomic(path, text, mode=0o755)
        write_atomic(self.plan, plan.to_json())
