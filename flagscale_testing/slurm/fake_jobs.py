"""Jobs without an engine in a cluster of Slurm: submitted as ours, or a step in someone's allocation."""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import token_hex

import psutil

from flagscale.files import write_all
from flagscale.run.env import CHANNEL_SECRET
from flagscale.run.rundir import RunDir
from flagscale.run.state import HostState, read_state
from flagscale.runners.slurm import ledger
from flagscale.runners.slurm.allocation import allocation
from flagscale.runners.slurm.ledger import Begin, Ledger
from flagscale.runners.slurm.step import start_step
from flagscale.values import Channel, Host, LaunchPlan, NodeCommand
from flagscale_testing.jobs.plans import AGENT, ROOT, fake_plan
from flagscale_testing.ports import free_port
from flagscale_testing.slurm.cluster import SlurmCluster

_NUMBERS = itertools.count()


@dataclass(frozen=True)
class FakeSlurmJob:
    """A plan with its run directory and its job in a cluster."""

    cluster: SlurmCluster
    plan: LaunchPlan
    job_id: str

    @property
    def files(self) -> RunDir:
        return RunDir(Path(self.plan.exp_dir))

    def state(self, rank: int) -> HostState | None:
        return read_state(self.files.state(self.plan.hosts[rank]), self.plan.run_id)

    def is_running(self) -> bool:
        """Whether all hosts run their part, with all ranks."""
        states = [self.state(host.rank) for host in self.plan.hosts]
        assert not any(state and state.ended for state in states), states
        reports = [self.files.path / f"report {host.rank}" for host in self.plan.hosts]
        return all(state and state.phase == "running" for state in states) and all(
            report.exists() for report in reports
        )

    def wait_until_running(self) -> FakeSlurmJob:
        self.cluster.wait_until(self.is_running, f"running hosts of job {self.job_id}")
        return self

    def processes(self, node: str) -> list[psutil.Process]:
        """Return the processes of the run on a node, also ranks without an environment."""
        return [process for process in self.cluster.processes(node) if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            of_run = process.environ().get("FLAGSCALE_RUN_ID") == self.plan.run_id
            return of_run or any(str(self.files.path) in word for word in process.cmdline())
        except psutil.NoSuchProcess:
            return False

    def slurm_state(self) -> str:
        """Return Slurm's state of the job; "" if it has forgotten it."""
        done = self.cluster.run("scontrol", "show", "job", self.job_id, code=None)
        return done.stdout.partition("JobState=")[2].partition(" ")[0]


def submit_fake(
    cluster: SlurmCluster,
    exp_dir: Path,
    *options: str,
    nodes: tuple[str, ...] = ("n1", "n2"),
    behaviours: tuple[str, ...] = ("rank",),
    is_ours: bool = True,
    stop_grace: float = 3.0,
) -> FakeSlurmJob:
    """Submit a job that starts its plan as soon as Slurm begins it; `options` are those of sbatch."""
    run_id = f"fake-{os.getpid()}-{next(_NUMBERS)}-{token_hex(3)}"
    (exp_dir / "logs").mkdir(parents=True)
    commands = [_node(exp_dir, rank, name, behaviours, stop_grace) for rank, name in enumerate(nodes)]
    channel = Channel("127.0.0.1", free_port()) if len(nodes) > 1 else None
    plan = fake_plan(exp_dir, run_id, commands, channel=channel, runner="slurm", start_timeout=40.0)
    (exp_dir / "plan.json").write_text(plan.to_json())
    name = run_id if is_ours else "of someone"
    words = ["--parsable", f"--nodelist={','.join(nodes)}", f"--nodes={len(nodes)}", f"--job-name={name}"]
    words += [f"--output={exp_dir}/logs/slurm.output", "--open-mode=append", "--mem=100", *options]
    program = f"exec {sys.executable} -m flagscale_testing.slurm.fake_jobs {exp_dir}"
    words += [f"--wrap=export PYTHONPATH={ROOT}; {program}"]
    job_id = cluster.run("sbatch", *words).stdout.strip()
    files = RunDir(exp_dir)
    recorded = Ledger("tiny", job_id, "root", name, time.time(), run_id, is_ours)
    ledger.record_job(files, recorded)
    return FakeSlurmJob(cluster, plan, job_id)


def _node(exp_dir: Path, rank: int, name: str, behaviours: tuple[str, ...], stop_grace: float) -> NodeCommand:
    return NodeCommand(
        host=Host(rank, name, len(behaviours), "cpu"),
        argv=(sys.executable, "-S", str(AGENT), str(exp_dir / f"report {rank}"), *behaviours),
        env={},
        cwd=str(exp_dir),
        failure_file=str(exp_dir / f"failure {rank}"),
        stop_grace=stop_grace,
    )


def main(exp_dir: Path) -> int:
    """Run the plan of a run directory in the job that this process is the script of, until it ends."""
    files, here = RunDir(exp_dir), allocation(os.environ)
    plan = files.read_plan()
    assert here
    assert plan
    while (known := ledger.read(files)) is None or known.job_id != here.job_id:
        time.sleep(0.05)
    if known.is_ours and here.restarts:
        plan = replace(plan, run_id=f"{known.name}-r{here.restarts}")
    hosts = tuple(host.name for host in here.hosts)
    ledger.record_begin(files, Begin(here.job_id, here.restarts, plan.run_id, hosts, time.time()))
    files.plan.write_text(plan.to_json())
    secret = json.dumps({CHANNEL_SECRET: token_hex(32)})
    write_all((files.secrets(host), secret, 0o600) for host in plan.hosts)
    code = start_step(plan, here).client.wait()
    if not known.is_ours:
        time.sleep(600)  # the work of its owner goes on
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
