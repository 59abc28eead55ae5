"""The run directory: the only owner of every path below `experiment.exp_dir`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

from flagscale.errors import FlagScaleError
from flagscale.files import locked, write_all, write_atomic
from flagscale.frozen import dataclass
from flagscale.values import Host, LaunchPlan, PlanVersionError


@dataclass(frozen=True)
class RunDir:
    """Names every file of a run; creating a `RunDir` does not touch the disk."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def slurm(self) -> Path:
        """What is recorded of the job in Slurm that the run is, or is a step of."""
        return self.path / "slurm.json"

    @property
    def slurm_script(self) -> Path:
        """The batch script of a job that was submitted to Slurm."""
        return self.logs / "scripts" / "slurm.sh"

    @property
    def slurm_output(self) -> Path:
        """What the batch script and Slurm itself print; jobs are appended."""
        return self.logs / "slurm.output"

    @property
    def slurm_secrets(self) -> Path:
        """Secret environment variables for a job in Slurm's queue, which needs them at each of its begins."""
        return self.logs / "pids" / "slurm.secrets.json"

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
    def traces(self) -> Path:
        """What torch's profiler has recorded of a training."""
        return self.path / "traces"

    @property
    def converted(self) -> Path:
        """The conversion of a Hugging Face folder that a training starts from."""
        return self.path / "converted"

    @property
    def mlflow_run(self) -> Path:
        """The id of the run in MLflow, with which a start that resumes continues it."""
        return self.path / "mlflow_run.json"

    @property
    def results(self) -> Path:
        """The output of batch inference, unless the configuration names another file."""
        return self.path / "results.jsonl"

    @property
    def pictures(self) -> Path:
        """The pictures that batch inference draws, unless the configuration names a file for the results."""
        return self.path / "pictures"

    @property
    def evaluation(self) -> Path:
        """The scores of an evaluation: `results.json`, table, picture, and one folder per model."""
        return self.path / "evaluation"

    def share_of(self, rank: int) -> RunDir:
        """Return the run directory of one host's share, for hosts that each start their own share."""
        return RunDir(self.path / "cloud" / f"host_{rank}")

    def own_of(self, host: Host) -> RunDir:
        """Return the folder of one host's own job, if each host runs one."""
        return RunDir(self.path / "hosts" / host.label)

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    def details(self, host: Host) -> Path:
        """The folder in which torchrun writes the streams of each rank."""
        return self.logs / "details" / host.label

    def services(self, host: Host) -> Path:
        """The states of a host's services, if it runs services rather than ranks."""
        return self.details(host) / "services.json"

    def service_log(self, host: Host, name: str) -> Path:
        """Everything that one service prints."""
        return self.details(host) / f"{name}.log"

    def service_progress(self, host: Host, name: str) -> Path:
        """The progress that a service reports."""
        return self.details(host) / f"{name}.progress.json"

    def run_script(self, host: Host) -> Path:
        return self.logs / "scripts" / f"{host.label}_run.sh"

    def stop_script(self, host: Host) -> Path:
        return self.logs / "scripts" / f"{host.label}_stop.sh"

    def output(self, host: Host) -> Path:
        """Everything that the processes of a host print; runs are appended, each after a header line."""
        return self.logs / f"{host.label}.output"

    def state(self, host: Host) -> Path:
        return self.logs / "pids" / f"{host.label}.json"

    def states(self) -> list[Path]:
        """The state files that exist here, one per host."""
        found = (self.logs / "pids").glob("host_*.json")
        return sorted(path for path in found if not path.name.endswith((".failure.json", ".secrets.json")))

    def failure(self, host: Host) -> Path:
        """The agent's report on the rank that failed first."""
        return self.logs / "pids" / f"{host.label}.failure.json"

    def heartbeat(self, host: Host) -> Path:
        """Touched by a rank of the host whenever it makes progress."""
        return self.logs / "pids" / f"{host.label}.heartbeat"

    def secrets(self, host: Host) -> Path:
        """Secret environment variables for the supervisor, which deletes the file after reading it."""
        return self.logs / "pids" / f"{host.label}.secrets.json"

    def forget_secrets(self, hosts: Iterable[Host]) -> None:
        """Remove the secrets of these hosts that are left here: those that no supervisor has read."""
        ours = {self.secrets(host).name: self.secrets(host) for host in hosts}
        with suppress(FileNotFoundError, NotADirectoryError):
            for name in ours.keys() & {*os.listdir(self.logs / "pids")}:
                ours[name].unlink(missing_ok=True)

    def read_plan(self) -> LaunchPlan | None:
        """Return the plan of the newest start; None if nothing was started.

        Raises:
            FlagScaleError: the plan cannot be read, or was written by another version of FlagScale.
        """
        try:
            return LaunchPlan.from_json(self.plan.read_text(encoding="utf-8", errors="surrogateescape"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except PlanVersionError as error:
            raise FlagScaleError(
                f"{self.plan}: the run was started by another version of FlagScale ({error}); use that "
                "version to query or stop it, or remove the file if none of its processes are running"
            ) from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise FlagScaleError(
                f"{self.plan} cannot be read ({reason}), so the state of its job is unknown; "
                "remove the file if the job is not running"
            ) from None

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Hold the run directory while a job is being started in it, against a second launcher.

        Raises:
            FlagScaleError: another launcher holds it, or the directory cannot be written.
        """
        busy = FlagScaleError(f"another command is starting a job in {self.path}; wait until it has finished")
        with ExitStack() as held:
            try:
                held.enter_context(locked(self.path / ".lock", busy=busy))
            except OSError as error:
                raise self.unwritable(error) from None
            yield

    def on_host(self, host: Host, *, busy: Exception | None = None) -> AbstractContextManager[None]:
        """Lock a host's part of the run, on that host: one command at a time starts or stops processes.

        `busy` is raised if another command holds the lock; default: wait for that command.
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

        `secrets` are given for the hosts that read them here.

        Raises:
            FlagScaleError: the directory cannot be written.
        """
        try:
            write_atomic(self.config, config)
            write_all((path, text, 0o755) for path, text in scripts.items())
            write_atomic(self.plan, plan.to_json())
            # Without a plan, `stop` would not find the secrets if this command were killed now.
            write_all(
                (self.secrets(host), json.dumps(dict(hidden)), 0o600) for host, hidden in secrets.items()
            )
        except OSError as error:
            raise self.unwritable(error) from None

    def unwritable(self, error: OSError) -> FlagScaleError:
        return FlagScaleError(f"cannot write to the run directory {self.path}: {error.strerror}")
