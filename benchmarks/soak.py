"""Random trials: start a job on four hosts, kill something at a random moment, stop, check what is left.

After each trial, no process of the job may be alive, every host's state must be final, the start must not
have been blocked (the run directory is always the same), and unrelated processes (decoys: same program, same
user, another run or none) must be alive. Hosts are sshd servers on loopback addresses; the job is the fake
agent of the tests with ranks that ignore TERM, are daemons, or have no environment.

    python -m benchmarks.soak [--trials 200] [--seed 0]

Trial n has the seed `seed + n`: repeat a failed one with `--seed ITS_SEED --trials 1` (the moments are the
same; the progress of the job by then depends on the machine). The exit code is 1 if a trial failed.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import Progress

from benchmarks.fanout import AGENT, plan_of, quick_farm
from flagscale.errors import FlagScaleError
from flagscale.remote import launcher
from flagscale.run.env import RUN_ID
from flagscale.run.rundir import RunDir
from flagscale.run.state import ENDED, read_state
from flagscale.values import LaunchPlan, Recovery
from flagscale_testing.farm.farm import Farm, alive, is_sshd

HOSTS = 4
KINDS = ("rank", "rank deaf", "rank daemon deaf", "rank bare")
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGSTOP)
LONGEST_START = 3.0
PATIENCE = 60.0
"""Seconds after which a command, or the end of the job, counts as failed."""

type Child = multiprocessing.context.ForkProcess


@dataclass(frozen=True)
class Trial:
    """The events of a trial, all chosen before it begins."""

    seed: int
    kinds: tuple[str, ...]
    restarts: int
    event: str
    signal: signal.Signals
    at: float
    """Seconds from the start to the event."""
    then: float
    """Seconds from the event to the stop."""
    stop_killed: float | None
    """Seconds after which the stop is killed (and repeated)."""

    @staticmethod
    def of(seed: int) -> Trial:
        dice = random.Random(seed)
        return Trial(
            seed=seed,
            kinds=tuple(dice.choices(KINDS, k=dice.randint(1, 3))),
            restarts=dice.randint(0, 1),
            event=dice.choice(
                ("a process", "a process", "a process", "the launcher", "two processes", "nothing")
            ),
            signal=dice.choice(SIGNALS),
            at=dice.uniform(0, LONGEST_START),
            then=dice.choice((0.0, dice.uniform(0, 3), dice.uniform(0, 3))),
            stop_killed=dice.uniform(0, 2) if dice.random() < 0.25 else None,
        )


def act(farm: Farm, plan: LaunchPlan, action: str) -> Child:
    """Begin to start or stop the job in a separate process; its output goes to a file."""
    result = Path(plan.exp_dir) / f"{action}.result"
    result.unlink(missing_ok=True)

    def work() -> None:
        logging.disable()
        os.environ.clear()
        os.environ.update(farm.environment())
        try:
            if action == "start":
                launcher.start(plan, "", {})
                result.write_text("ok")
            else:
                replies = launcher.stop(plan).values()
                wrong = [reply["message"] for reply in replies if not reply["ok"]]
                result.write_text("; ".join(wrong) or "ok")
        except FlagScaleError as error:
            result.write_text(str(error))

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    return child


def run_trial(farm: Farm, exp_dir: Path, trial: Trial, dice: random.Random) -> tuple[list[str], list[str]]:
    """Return what was done, and what is wrong afterwards."""
    done: list[str] = []
    plan = plan_of(farm.hosts, exp_dir, f"soak-{trial.seed}-{time.time_ns()}", *trial.kinds)
    plan = replace(plan, recovery=Recovery(trial.restarts, restart_timeout=5.0), start_timeout=20.0)
    start = act(farm, plan, "start")
    start.join(trial.at)
    if trial.event == "the launcher":
        start.kill()
        done.append(f"{trial.at:.2f} s: killed the launcher")
    elif trial.event != "nothing":
        for _ in range(2 if trial.event == "two processes" else 1):
            done.append(f"{trial.at:.2f} s: {_hit(farm, trial.signal, dice)}")
    time.sleep(trial.then)
    # A stop before the job is recorded would report that there is no job.
    while start.is_alive() and not _is_recorded(plan):
        time.sleep(0.01)
    if trial.stop_killed is not None:
        stop = act(farm, plan, "stop")
        stop.join(trial.stop_killed)
        stop.kill()
        stop.join()
        done.append(f"killed the stop after {trial.stop_killed:.2f} s")
    wrong = []
    for name, child in (("stop", act(farm, plan, "stop")), ("start", start)):
        child.join(PATIENCE)
        if child.is_alive():
            wrong.append(f"{name} did not end within {PATIENCE:g} s")
            child.kill()
            child.join()
        result = exp_dir / f"{name}.result"
        reported = result.read_text() if result.exists() else "nothing"
        done.append(f"{name}: {reported}")
        # A start whose session we killed may report that an earlier job may still be running.
        refused = "a job is still running" in reported and "whether a job is still running" not in reported
        if refused or "another command is starting" in reported or (name == "stop" and reported != "ok"):
            wrong.append(f"{name} reported: {reported}")
    return done, wrong + _left(farm, plan)


def _is_recorded(plan: LaunchPlan) -> bool:
    recorded = RunDir(Path(plan.exp_dir)).read_plan()
    return recorded is not None and recorded.run_id == plan.run_id


def _hit(farm: Farm, number: signal.Signals, dice: random.Random) -> str:
    """Signal any process of the job, or a session of its launcher, on any host."""
    processes = [process for host in farm.hosts for process in farm.processes(host)]
    while processes:
        victim = processes.pop(dice.randrange(len(processes)))
        with suppress(psutil.NoSuchProcess):
            words = " ".join(victim.cmdline()[1:4])
            if number is signal.SIGSTOP and "serve" in words:
                continue  # its launcher would wait for minutes, which is correct
            victim.send_signal(number)
            return f"{number.name} to {victim.pid} ({words})"
    return "there was no process to kill"


def _left(farm: Farm, plan: LaunchPlan) -> list[str]:
    """Return what is left of a job, after waiting for its end."""
    deadline = time.monotonic() + PATIENCE / 4
    while (left := _processes(farm)) and time.monotonic() < deadline:
        time.sleep(0.05)
    wrong = []
    for process in left:
        with suppress(psutil.NoSuchProcess):
            wrong.append(f"left: {process.pid} {process.status()} {' '.join(process.cmdline())}")
            process.kill()
    files = RunDir(Path(plan.exp_dir))
    for host in plan.hosts:
        state = read_state(files.state(host), plan.run_id)
        if state and state.phase not in ENDED:
            wrong.append(f"state of {host.name}: {state.phase}")
        if files.secrets(host).exists():
            wrong.append(f"secrets of {host.name} were not removed")
    return wrong


def _processes(farm: Farm) -> list[psutil.Process]:
    """Return all processes of the farm except its sshd servers and their sessions."""
    return [process for process in farm.keeper.processes() if not is_sshd(process) and alive(process)]


@contextmanager
def decoys(folder: Path) -> Iterator[list[psutil.Process]]:
    """Processes like those of a job that belong to another run or to none."""
    # They outlive every trial; their command lines look like those of an engine and its rank.
    program = "import time; time.sleep(1e6)"
    others = [
        subprocess.Popen(
            [sys.executable, "-S", "-c", program, *words, str(folder / "report-0")],
            env={**os.environ, **({RUN_ID: run_id} if run_id else {})},
            start_new_session=True,
        )
        for run_id in ("", "another-run")
        for words in ([str(AGENT)], ["rank"])
    ]
    try:
        yield [psutil.Process(other.pid) for other in others]
    finally:
        for other in others:
            other.kill()
            other.wait()


def main(words: Sequence[str]) -> int:
    """Run the trials; return 1 if one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(words)
    console, failed = Console(highlight=False), 0
    with (
        tempfile.TemporaryDirectory() as folder,
        quick_farm(HOSTS) as farm,
        decoys(Path(folder)) as others,
        # Refreshed by hand, because another thread could hold a lock while we fork.
        Progress(console=console, auto_refresh=False) as progress,
    ):
        task = progress.add_task("trials", total=asked.trials)
        for seed in range(asked.seed, asked.seed + asked.trials):
            trial = Trial.of(seed)
            done, wrong = run_trial(farm, Path(folder), trial, random.Random(-seed))
            wrong += [f"decoy {process.pid} is dead" for process in others if not alive(process)]
            if wrong:
                failed += 1
                text = "\n  ".join([f"trial with seed {seed} failed: {trial}", *done, *wrong])
                console.print(text, markup=False)
            progress.update(task, advance=1, description=f"trials, {failed} failed", refresh=True)
    console.print(f"{asked.trials} trials, {failed} failed, {len(others)} decoys")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
