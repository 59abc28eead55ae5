"""An allocation as `salloc` gives it to a user's shell, for commands that run inside it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flagscale_testing.slurm.cluster import SlurmCluster


@dataclass(frozen=True)
class Shell:
    """The environment of the shell that salloc has started."""

    cluster: SlurmCluster
    variables: dict[str, str]

    @property
    def job_id(self) -> str:
        return self.variables["SLURM_JOB_ID"]

    def environment(self, **more: str) -> dict[str, str]:
        """Return the environment of commands in this shell, with `more` variables."""
        of_slurm = {name: value for name, value in self.variables.items() if name.startswith("SLURM")}
        return {**self.cluster.environment(), **of_slurm, **more}


@contextmanager
def salloc(cluster: SlurmCluster, folder: Path, *options: str) -> Iterator[Shell]:
    """Allocate hosts for a shell; at the end the shell exits, which gives them back."""
    file = folder / f"variables of {len([*folder.iterdir()])}"
    script = 'env -0 > "$0.part" && mv "$0.part" "$0" && read -r nothing'
    shell = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "salloc", "--quiet", *options, "sh", "-c", script, str(file)],
        env=cluster.environment(),
        stdin=subprocess.PIPE,
    )
    try:
        cluster.wait_until(lambda: file.exists() or shell.poll() is not None, "allocation")
        entries = file.read_text().rstrip("\0").split("\0")
        yield Shell(cluster, dict(entry.split("=", 1) for entry in entries))
    finally:
        assert shell.stdin
        shell.stdin.close()
        try:
            shell.wait(30)
        finally:
            shell.kill()
