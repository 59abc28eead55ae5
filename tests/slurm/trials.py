"""Random faults in a row: each may end a job at any moment, and the next begin continues what was saved.

    python -m tests.slurm.trials [TRIALS [SEED]]

After each trial, nothing of the run is left on any node, a job of somebody else still runs, and no checkpoint
is lost: a begin continues at least from the last one that its ranks have saved.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from flagscale.run.state import read_state
from flagscale_testing.slurm.cluster import SlurmCluster, slurm_cluster
from tests.slurm.jobs import SlurmExperiment

PROGRAM = """
import os, signal, sys, time

folder, rank = {folder!r}, os.environ["RANK"]
saved = os.path.join(folder, f"checkpoint.{{rank}}")

def save(step):
    with open(saved + ".part", "w") as file:
        file.write(str(step))
    os.replace(saved + ".part", saved)

def end(number, frame):
    save(step)
    sys.exit(0)

step = int(open(saved).read()) if os.path.exists(saved) else 0
with open(os.path.join(folder, "noted"), "a") as file:
    file.write(f"{{rank}} {{step}}\\n")
signal.signal(signal.SIGTERM, end)
while True:
    time.sleep(0.1)
    step += 1
    if step % 10 == 0:
        save(step)
"""


class Trials:
    """One job after another in one run directory, with a fault in each."""

    def __init__(self, cluster: SlurmCluster, folder: Path, seed: int) -> None:
        self.job = SlurmExperiment(cluster, folder).write()
        (folder / "program.py").write_text(PROGRAM.format(folder=str(folder)))
        self._random = random.Random(seed)
        decoy = ("sbatch", "--parsable", "--output=/dev/null", "--partition=high", "--wrap=sleep 100000")
        self._decoy = cluster.run(*decoy).stdout.strip()
        self._begins = 0
        self._faults: Mapping[str, Callable[[], object]] = {
            "time limit": self.job.announce_limit,
            "preempted": self._preempt,
            "requeued": lambda: cluster.run("scontrol", "requeue", self.job.job().job_id),
            "cancelled": lambda: cluster.run("scancel", self.job.job().job_id),
            "stopped": lambda: self.job("stop"),
            "a rank or its agent killed": lambda: self._kill("program.py"),
            "a supervisor killed": self._kill_supervisor,
            "the job's program killed": lambda: self._kill("runners.slurm.batch"),
        }

    def run(self, number: int) -> str:
        """Let a job begin, or begin again; end it by a random fault, and check what is left.

        Returns a line about it. Raises AssertionError.
        """
        before = self._checkpoints()
        if self._state() == "PENDING":
            self.job.begin_now()
        else:
            self.job("run", "+experiment.runner.slurm.requeue=true")
        self._begins += 1
        self.job.wait(lambda: len(self._begun()) == 2 * self._begins, "two ranks")
        assert {rank: step for rank, step in self._begun()[-2:] if step} == before, self._begun()
        time.sleep(self._random.uniform(0, 3))
        name = self._random.choice([*self._faults])
        saved = self._checkpoints()
        self._faults[name]()
        self.job.wait(lambda: self._state() in ("", "PENDING"), f"end after this: {name}")
        self._check(name, saved)
        return f"{number}: {name}; saved {self._checkpoints()}, {self.job.status()['state']}"

    def _check(self, name: str, saved: Mapping[str, int]) -> None:
        left = [one for node in self.job.cluster.nodes for one in self._processes(node)]
        assert not left, f"{name}: left over: {left}"
        words = ("squeue", "--noheader", "--format=%T", f"--jobs={self._decoy}")
        assert self.job.cluster.run(*words).stdout.strip() == "RUNNING", f"{name}: the other job has ended"
        now = self._checkpoints()
        assert all(now.get(rank, 0) >= step for rank, step in saved.items()), f"{name}: {saved}, then {now}"

    def _state(self) -> str:
        """Return the state of the newest job in Slurm; "" if there is none, or it is over."""
        return self.job.slurm_state() if self.job.run_dir.slurm.exists() else ""

    def _preempt(self) -> None:
        words = ("--partition=high", "--nodes=2", "--output=/dev/null", "--cpus-per-task=3")
        self.job.cluster.run("sbatch", "--ntasks-per-node=1", *words, "--wrap=sleep 1")

    def _kill_supervisor(self) -> None:
        plan = self.job.run_dir.read_plan()
        assert plan
        state = read_state(self.job.run_dir.state(self._random.choice(plan.hosts)), plan.run_id)
        assert state
        assert state.supervisor
        os.kill(state.supervisor.pid, signal.SIGKILL)

    def _kill(self, mark: str) -> None:
        found = [one for node in self.job.cluster.nodes for one in self._processes(node, mark)]
        self._random.choice(found).kill()

    def _processes(self, node: str, mark: str = "") -> list[psutil.Process]:
        """Return the processes of the run on a node whose command lines have a mark."""
        found = []
        for one in self.job.cluster.processes(node):
            with suppress(psutil.NoSuchProcess):
                words = " ".join(one.cmdline())
                if str(self.job.folder) in words and mark in words:
                    found.append(one)
        return found

    def _checkpoints(self) -> dict[str, int]:
        """Return the step in the checkpoint of each rank that has one."""
        return {path.suffix[1:]: int(path.read_text()) for path in self.job.folder.glob("checkpoint.[01]")}

    def _begun(self) -> list[tuple[str, int]]:
        """Return each rank that has begun, with the step from which it has continued."""
        path = self.job.folder / "noted"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(rank, int(step)) for rank, step in map(str.split, lines)]


def main(words: list[str]) -> None:
    trials, seed = (int(word) for word in [*words, *("50", "0")[len(words) :]])
    with tempfile.TemporaryDirectory() as folder, slurm_cluster(Path(folder, "cluster")) as cluster:
        row = Trials(cluster, Path(folder, "job"), seed)
        for number in range(1, trials + 1):
            print(row.run(number), flush=True)
    print(f"{trials} trials: no checkpoint was lost, and nothing was left over")


if __name__ == "__main__":
    main(sys.argv[1:])
