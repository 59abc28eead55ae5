"""A job whose program trains nothing: it runs until a file ends it, and saves when it is told to stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flagscale.run.env import import_path
from flagscale.run.rundir import RunDir
from flagscale.runners.slurm import ledger
from flagscale_testing.ports import free_port
from flagscale_testing.slurm.cluster import SlurmCluster

_REVOKED = 3.0
ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import os, signal, sys, time

folder = {folder!r}
rank = os.environ["RANK"]

def note(what):
    with open(os.path.join(folder, "noted"), "a") as file:
        file.write(f"{{what}} {{rank}}\\n")

def save(number, frame):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm and the agent both send one
    note("saved")
    sys.exit(0)

signal.signal(signal.SIGTERM, save)
with open(os.path.join(folder, f"environ.{{rank}}"), "w") as file:
    file.write(os.environ.get("SLURM_TEST_TOKEN", ""))
note("begun")
while not os.path.exists(os.path.join(folder, "end")):
    time.sleep(0.1)
sys.exit(int(open(os.path.join(folder, "end")).read() or 0))
"""
EXPERIMENT = """
experiment:
  exp_name: toy
  exp_dir: {folder}/out
  task: {{backend: megatron, entrypoint: {folder}/program.py}}
  runner:
    type: slurm
    platform: cpu
    nnodes: 2
    master_port: {port}
    stop_grace: 5
    slurm: {{partition: main}}
action: dryrun
train:
  system: {{tensor_model_parallel_size: 1, pipeline_model_parallel_size: 1, checkpoint: {{save: null}}}}
  model:
    num_layers: 2
    hidden_size: 32
    num_attention_heads: 4
    seq_length: 64
    max_position_embeddings: 64
    global_batch_size: 2
    micro_batch_size: 1
    train_iters: 10
    optimizer: {{lr: 1.0e-4}}
  data: {{tokenizer: {{tokenizer_type: NullTokenizer, vocab_size: 100}}, mock_data: true}}
"""


@dataclass(frozen=True)
class SlurmExperiment:
    """An experiment in a folder of its own, and the cluster that it is submitted to."""

    cluster: SlurmCluster
    folder: Path

    def write(self) -> SlurmExperiment:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "program.py").write_text(PROGRAM.format(folder=str(self.folder)))
        (self.folder / "config.yaml").write_text(EXPERIMENT.format(folder=self.folder, port=free_port()))
        return self

    @property
    def run_dir(self) -> RunDir:
        return RunDir(self.folder / "out")

    def words(self, action: str, *more: str) -> list[str]:
        folder = ["--config-path", str(self.folder), "--config-name", "config"]
        return [sys.executable, str(ROOT / "run.py"), *folder, f"action={action}", *more]

    def environment(self, **more: str) -> dict[str, str]:
        paths = {"PYTHONPATH": import_path(str(ROOT)), "XDG_CACHE_HOME": str(self.folder / "cache")}
        return {**self.cluster.environment(), **paths, "OMP_NUM_THREADS": "1", **more}

    def __call__(self, action: str, *more: str, code: int | None = 0, **environ: str) -> str:
        """Perform an action, check its exit code, and return everything that it prints."""
        done = subprocess.run(
            self.words(action, *more),
            env=self.environment(**environ),
            capture_output=True,
            text=True,
            timeout=240,
            cwd=self.folder,
        )
        assert code in (None, done.returncode), done.stdout + done.stderr
        return done.stdout + done.stderr

    def status(self) -> dict[str, Any]:
        done: dict[str, Any] = json.loads(
            subprocess.run(
                self.words("query", "output=json"),
                env=self.environment(),
                capture_output=True,
                text=True,
                timeout=240,
                cwd=self.folder,
            ).stdout
        )
        return done

    def job(self) -> ledger.Ledger:
        found = ledger.read(self.run_dir)
        assert found
        return found

    def noted(self, what: str) -> int:
        """Return how many ranks have noted something."""
        path = self.folder / "noted"
        return path.read_text().count(what) if path.exists() else 0

    def end(self, code: int = 0) -> None:
        """Let the ranks end."""
        partial = self.folder / "end.part"
        partial.write_text(str(code))
        os.replace(partial, self.folder / "end")

    def wait(self, is_true: Callable[[], object], what: str) -> None:
        try:
            self.cluster.wait_until(is_true, what, 180)
        except TimeoutError as error:
            output = self.run_dir.slurm_output
            printed = output.read_text() if output.exists() else ""
            raise AssertionError(f"{error}\n{printed}\n{self('query', code=None)}") from None

    def announce_limit(self) -> None:
        """Send the signal that Slurm sends before the time limit, to the batch script alone."""
        self.cluster.run("scancel", "--batch", f"--signal={signal.SIGUSR1.name[3:]}", self.job().job_id)

    def begin_now(self) -> None:
        """Let a job that was requeued begin without Slurm's pause of two minutes.

        Within a moment after its last processes, Slurm would refuse to start it: "Job credential revoked".
        """
        self.wait(lambda: self.slurm_state() == "PENDING", "a pending job")
        pending = time.monotonic()
        self.wait(lambda: time.monotonic() - pending > _REVOKED, "the end of the old credential")
        self.cluster.run("scontrol", "update", f"JobId={self.job().job_id}", "StartTime=now")

    def slurm_state(self) -> str:
        done = self.cluster.run(
            "squeue", "--noheader", "--format=%T", f"--jobs={self.job().job_id}", code=None
        )
        return done.stdout.strip()
