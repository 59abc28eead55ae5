"""The run directory: the one owner of every path below `experiment.exp_dir`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from flagscale.errors import FlagScaleError
from flagscale.files import locked, write_atomic
from flagscale.values import Host, LaunchPlan, PlanVersionError


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
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def results(self) -> Path:
        """What batch inference generates, unless the configuration names another file."""
        return self.path / "results.jsonl"

    def share_of(self, rank: int) -> RunDir:
        """Return the run directory of one host's own share, for hosts that each start it by themselves."""
        return RunDir(self.path / "cloud" / f"host_{rank}")

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def details(self, host: Host) -> Path:
        """torchrun's folder for the streams of each rank."""
        return self.logs / "details" / host.label

    def services(self, host: Host) -> Path:
        """How the services of a host are, where it runs services rather than ranks."""
        return self.details(host) / "services.json"

    def service_log(self, host: Host, name: str) -> Path:
        """Everything that one service prints."""
        return self.details(host) / f"{name}.log"

    def service_progress(self, host: Host, name: str) -> Path:
        """How far a service says it is."""
        return self.details(host) / f"{name}.progress.json"

    def run_script(self, host: Host) -> Path:
        return self.logs / "scripts" / f"{host.label}_run.sh"

    def stop_script(self, host: Host) -> Path:
        return self.logs / "scripts" / f"{host.label}_stop.sh"

    def output(self, host: Host) -> Path:
        """Everything that the processes of a host print; runs are appended, each behind a header line."""
        return self.logs / f"{host.label}.output"

    def state(self, host: Host) -> Path:
        return self.logs / "pids" / f"{host.label}.json"

    def states(self) -> list[Path]:
        """The states of all hosts that have one here."""
        found = (self.logs / "pids").glob("host_*.json")
        return sorted(path for path in found if not path.name.endswith((".failure.json", ".secrets.json")))

    def failure(self, host: Host) -> Path:
        """What the agent of the ranks tells of the rank that failed first."""
        return self.logs / "pids" / f"{host.label}.failure.json"

    def heartbeat(self, host: Host) -> Path:
        """Touched by a rank of the host whenever it goes on."""
        return self.logs / "pids" / f"{host.label}.heartbeat"

    def secrets(self, host: Host) -> Path:
        """Secret environment on its way to the supervisor, which deletes it when read."""
        return self.logs / "pids" / f"{host.label}.secrets.json"

    def read_plan(self) -> LaunchPlan | None:
        """Return the plan of the newest start, None where nothing was started.

        Raises:
            FlagScaleError: there is a plan, but it cannot be read, or another version of FlagScale wrote it.
        """
        try:
            return LaunchPlan.from_json(self.plan.read_text(encoding="utf-8", errors="surrogateescape"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PlanVersionError as error:
            raise FlagScaleError(
                f"{self.plan}: the run was started by another version of FlagScale ({error}): use that "
                "version to query or stop it, or remove the file if nothing of it runs any more"
            ) from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise FlagScaleError(
                f"{self.plan} cannot be read ({reason}), so nothing is known of the job that it started; "
                "remove the file if none runs any more"
            ) from None

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Hold the run directory while a job is being started in it, against a second launcher.

        Raises:
            FlagScaleError: another launcher holds it, or the directory cannot be written.
        """
        busy = FlagScaleError(f"another command is starting a job in {self.path}; wait for it")
        with ExitStack() as held:
            try:
                held.enter_context(locked(self.path / ".lock", busy=busy))
            except OSError as error:
                raise self.unwritable(error) from None
            yield

    def on_host(self, host: Host, *, busy: Exception | None = None) -> AbstractContextManager[None]:
        """Hold a host's part of the run, on that host: one command at a time starts or stops processes.

        `busy` is raised if another command holds it; default: wait for that command.
        """
        return locked(self.logs / "pids" / f"{host.label}.lock", busy=busy)

    def write_launch(
        self,
        plan: LaunchPlan,
        scripts: Mapping[Path, str],
        config: str,
        secrets: Mapping[Host, Mapping[str, str]],
    ) -> None:
        """Record one start: resolved configuration, scripts, the plan that names them, and last the secrets.

        `secrets` are those of the hosts that read them here.

        Raises:
            FlagScaleError: the directory cannot be written.
        """
        try:
            write_atomic(self.config, config)
            for path, text in scripts.items():
                write_atomic(path, text, mode=0o755)
            write_atomic(self.plan, plan.to_json())
            # Without a plan no stop would find them, should this command be killed now.
            for host, hidden in secrets.items():
                write_atomic(self.secrets(host), json.dumps(dict(hidden)), mode=0o600)
        except OSError as error:
            raise self.unwritable(error) from None

    def unwritable(self, error: OSError) -> FlagScaleError:
        return FlagScaleError(f"cannot write the run directory {self.path}: {error.strerror}")
