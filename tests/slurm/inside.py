"""An experiment of a user inside an allocation, and commands about it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from flagscale.run.env import import_path
from flagscale_testing.slurm.allocations import Shell

ROOT = Path(__file__).resolve().parents[2]
TOY = ROOT / "tests" / "outside" / "runner" / "toy_engine.py"
EXPERIMENT = """
experiment:
  exp_name: toy
  exp_dir: {folder}/out
  task: {{type: inference, backend: toy}}
  runner: {{type: slurm, platform: cpu}}
  envs: {{TOY_TOKEN: top-secret}}
action: dryrun
inference: {{until: {folder}/end}}
"""
METADATA = "Metadata-Version: 2.1\nName: toy-queue\nVersion: 1.0\n"


@dataclass(frozen=True)
class Commands:
    """Commands about one experiment, whose program runs on each host until the file `end` appears."""

    folder: Path
    shell: Shell

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def popen(self, action: str, *more: str, inside: bool = True) -> subprocess.Popen[str]:
        words = ["--config-path", str(self.folder / "conf"), "--config-name", "config", f"action={action}"]
        path = {"PYTHONPATH": f"{self.folder / 'site'}:{import_path(str(ROOT))}"}
        cluster = self.shell.cluster
        environment = self.shell.environment(**path) if inside else {**cluster.environment(), **path}
        return subprocess.Popen(
            [sys.executable, str(ROOT / "run.py"), *words, *more],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
        )

    def __call__(self, action: str, *more: str, code: int = 0, inside: bool = True) -> str:
        """Run an action, check its exit code, and return everything that it prints."""
        with self.popen(action, *more, inside=inside) as command:
            printed, _ = command.communicate(timeout=180)
        assert command.returncode == code, printed
        return printed

    def status(self, *, code: int = 0, inside: bool = True) -> dict[str, Any]:
        done: dict[str, Any] = json.loads(self("query", "output=json", code=code, inside=inside))
        return done

    def wait_for(self, state: str) -> None:
        self.shell.cluster.wait_until(lambda: self.status()["state"] == state, state)

    def printed(self) -> str:
        return "".join(path.read_text() for path in sorted(self.out.glob("logs/host_*.output")))

    def steps(self) -> list[str]:
        """Return the names of the allocation's steps that run."""
        words = ["squeue", "--steps", "--noheader", f"--jobs={self.shell.job_id}", "--format=%j"]
        names = self.shell.cluster.run(*words).stdout.split()
        return [name for name in names if name != "extern"]

    def processes(self) -> list[psutil.Process]:
        """Return the processes of the experiment on all nodes."""
        cluster = self.shell.cluster
        return [one for node in self.nodes for one in cluster.processes(node) if self._is_ours(one)]

    @property
    def nodes(self) -> tuple[str, ...]:
        return self.shell.cluster.nodes

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return str(self.folder) in " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            return False


def toy_commands(folder: Path, shell: Shell, engine: Path = TOY) -> Commands:
    """Return commands about an experiment of the engine in a file, which they find as an installed one."""
    site = folder / "site" / "toy_queue-1.0.dist-info"
    site.mkdir(parents=True)
    shutil.copy(engine, site.parent)
    (site / "METADATA").write_text(METADATA)
    (site / "entry_points.txt").write_text(f"[flagscale.engines]\ntoy = {engine.stem}:ENGINE\n")
    (folder / "conf").mkdir()
    (folder / "conf" / "config.yaml").write_text(EXPERIMENT.format(folder=folder))
    return Commands(folder, shell)
