"""Compare a job that we submit to Slurm with a hand-written batch script: time to the first iteration.

Both train the same program with the same arguments on two hosts of a real cluster of virtual nodes on this
machine (`flagscale_testing.slurm`), alternately, in one run of this script: ours by `run.py action=run`,
theirs by `sbatch` of a script whose only command is `srun ... torchrun`. Prints every pair, and the medians
of the differences: from the command that is typed, and from the moment at which Slurm has taken the job.

    python -m benchmarks.slurm [--rounds 10]
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from flagscale.run.env import import_path
from flagscale.run.rundir import RunDir
from flagscale.runners.slurm import ledger
from flagscale_testing.jobs.demo import TINY, random_tokens
from flagscale_testing.ports import free_port
from flagscale_testing.slurm.cluster import SlurmCluster, slurm_cluster

ROOT = Path(__file__).resolve().parents[1]
WORDS = [
    *(sys.executable, str(ROOT / "run.py"), "--config-path", str(ROOT / "examples/aquila/conf")),
    *("--config-name", "config", "experiment.runner.type=slurm", "experiment.runner.platform=cpu"),
    *("experiment.runner.nnodes=2", "experiment.runner.nproc_per_node=1", *TINY, *random_tokens(8191)),
    *("train.model.train_iters=3", "+train.system.checkpoint.save=null", "train.model.eval_iters=0"),
]
HOSTS = 2
LIMIT = 300.0


@dataclass(frozen=True)
class Timing:
    """Seconds to the end of iteration 1."""

    from_command: float
    from_submission: float


def ours(cluster: SlurmCluster, folder: Path) -> Timing:
    """Time `action=run`."""
    run_dir, begun = RunDir(folder / "out"), time.time()
    _call(cluster, [*WORDS, f"experiment.exp_dir={run_dir.path}", "action=run"])
    first = _first(run_dir.metrics)
    job = ledger.read(run_dir)
    assert job
    _wait_until_free(cluster)
    return Timing(first - begun, first - job.submitted)


def theirs(cluster: SlurmCluster, folder: Path) -> Timing:
    """Time `sbatch` of a script with torchrun and the arguments of our plan."""
    metrics = folder / "metrics.jsonl"
    words = ["--nnodes", str(HOSTS), "--nproc-per-node", "1", "--rdzv-backend", "static"]
    words += ["--master-addr", cluster.config.nodes[0].address, "--master-port", str(free_port())]
    torchrun = shlex.join([sys.executable, "-m", "torch.distributed.run", *words])
    program = shlex.join(["-m", "megatron.flagscale.train_gpt", *_argv(cluster, folder, metrics)])
    command = f"exec {torchrun} --node-rank $SLURM_NODEID {program}"
    script = folder / "job.sh"
    script.write_text(
        "#!/bin/bash\n"
        f"#SBATCH --nodes={HOSTS} --ntasks-per-node=1 --output={folder}/output\n"
        f"export PYTHONPATH={shlex.quote(import_path(str(ROOT)))} OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=\n"
        f"exec srun bash -c {shlex.quote(command)}\n"
    )
    begun = time.time()
    _call(cluster, ["sbatch", str(script)])
    submitted = time.time()
    first = _first(metrics)
    _wait_until_free(cluster)
    return Timing(first - begun, first - submitted)


def _argv(cluster: SlurmCluster, folder: Path, metrics: Path) -> list[str]:
    """Return the arguments that our plan gives to the program, with another file of metrics."""
    asked = [*WORDS, f"experiment.exp_dir={folder}/plan", "action=dryrun"]
    printed = _call(cluster, asked)
    _, _, after = printed.partition("--module megatron.flagscale.train_gpt\n")
    lines = after.partition("\nset -eo pipefail")[0].splitlines()
    words = [word for line in lines for word in shlex.split(line.removeprefix("#"))]
    words[words.index("--metrics-file") + 1] = str(metrics)
    return words


def _call(cluster: SlurmCluster, words: list[str]) -> str:
    done = subprocess.run(words, env=cluster.environment(), capture_output=True, text=True, timeout=LIMIT)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def _first(metrics: Path) -> float:
    """Return when iteration 1 ended, as its rank has recorded it."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        if metrics.exists():
            for line in metrics.read_text().splitlines(keepends=True):
                if line.endswith("\n") and "iteration_ms" in (values := json.loads(line)):
                    return float(values["time"])
        time.sleep(0.1)
    raise TimeoutError(f"no iteration in {metrics} after {LIMIT:g} s")


def _wait_until_free(cluster: SlurmCluster) -> None:
    """Wait until no job is left, so that the next one begins at once."""
    cluster.wait_until(lambda: not cluster.run("squeue", "--noheader").stdout.strip(), "end of a job", LIMIT)
    cluster.wait_until_idle()


def main() -> None:
    """Measure, and print every pair and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    pairs = []
    with tempfile.TemporaryDirectory() as name, slurm_cluster(Path(name)) as cluster:
        for number in range(-1, rounds):  # the first pair warms up
            found = {}
            for side in (ours, theirs) if number % 2 else (theirs, ours):
                folder = Path(name) / f"{side.__name__}{number}"
                folder.mkdir()
                found[side] = side(cluster, folder)
            if number >= 0:
                pairs.append((found[ours], found[theirs]))
                print(f"ours {found[ours]}  theirs {found[theirs]}", flush=True)
    for field in ("from_command", "from_submission"):
        differences = [getattr(one, field) - getattr(other, field) for one, other in pairs]
        median, least, most = statistics.median(differences), min(differences), max(differences)
        print(f"{field}: ours - theirs: {median:+.2f} s ({least:+.2f} to {most:+.2f}, {rounds} pairs)")


if __name__ == "__main__":
    main()
