"""The fault matrix: inject every known fault into a real training job on three hosts and report the results.

Three hosts with their own network, processes and sshd (network namespaces) train a tiny Megatron model on
CPU, started by `run.py`. Reported per fault: seconds until the run's state shows it; seconds until nothing of
the run is left, or until the first iteration after the restart (mostly the startup of the training itself);
repeated iterations, and how many of them had not been saved; processes left after a stop; surviving decoys;
the message of a query (or of the command that failed).

    python -m benchmarks.faults [--only NAME ...]

Requires root, for the namespaces.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from benchmarks.drill import Drill, decoys, mounted, small_memory, wait
from flagscale.run.env import RUN_ID
from flagscale_testing.farm.farm import alive
from flagscale_testing.farm.namespaces import namespace_farm

RESTART = ("+experiment.runner.max_restarts=1", "+experiment.runner.restart_timeout=60")
HANG = "+experiment.runner.hang_timeout=20"
AWAY = 8.0
"""Seconds for which a host is cut off before it comes back."""
HEAD = "| fault | detected, s | clean, s | runs again, s | lost (unsaved) | left | decoys | reported |"


@dataclass
class Row:
    """The effects of a fault; None if a figure does not apply. Times are in seconds since the fault."""

    detected: float | None = None
    clean: float | None = None
    again: float | None = None
    lost: int | None = None
    unsaved: int | None = None
    """Iterations behind the newest checkpoint when the fault was detected."""
    reported: str = ""


def hurt(drill: Drill, fault: Callable[[], object], undo: Callable[[], object] = bool) -> Row:
    """Start, inject the fault, undo it once detected, and wait until the run goes on or has to end."""
    drill.start()
    victims = drill.training()
    begun = time.monotonic()
    fault()
    row = Row(detected=wait(drill.has_noticed, "the fault is not detected"))
    iteration = drill.iteration()
    row.unsaved = iteration - drill.saved()
    undo()
    if set(RESTART) <= set(drill.overrides):
        wait(lambda: bool(drill.iterations_again()), "it does not go on")
        row.again = time.monotonic() - begun
        row.lost = iteration - drill.iterations_again()[0] + 1
        assert not [process for process in victims if alive(process)], "old ranks are still alive"
    else:
        wait(lambda: not drill.processes(), "processes are left")
        row.clean = time.monotonic() - begun
    row.reported = drill.failure_shown()
    return row


def resume(drill: Drill, row: Row, iteration: int) -> None:
    """Start a job again that had reached an iteration; times count from this start."""
    since = time.time()
    code, printed = drill.do("run")
    assert code == 0, printed
    wait(lambda: bool(drill.iterations_since(since)), "it does not go on")
    row.again = time.time() - since
    row.lost = iteration - drill.iterations_since(since)[0] + 1


def kill(drill: Drill, host: int, kind: str, number: signal.Signals = signal.SIGKILL) -> Row:
    """Send a signal to a process of a host."""
    return hurt(drill, lambda: drill.find(host, kind).send_signal(number))


def exception(drill: Drill) -> Row:
    """Raise an exception in the main thread of rank 1."""
    return hurt(drill, (drill.folder / "1.raise").touch)


def out_of_memory(drill: Drill) -> Row:
    """Make rank 1 allocate more memory than its control group allows."""
    with small_memory(100 << 20) as confine:

        def eat() -> None:
            confine(drill.find(1, "rank").pid)
            (drill.folder / "1.eat").touch()

        return hurt(drill, eat)


def cut_off(drill: Drill, back: bool) -> Row:
    """Make the network drop everything from and to a host."""

    def restore() -> None:
        if back:
            time.sleep(AWAY)
            drill.farm.restore(drill.farm.hosts[1])

    return hurt(drill, lambda: drill.farm.cut(drill.farm.hosts[1]), restore)


def disk_full(drill: Drill) -> Row:
    """Leave no space for the next checkpoint, then free space and start again."""
    filler = drill.checkpoints.parent / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(b"x" * 4096):
                pass

    # There is no restart: the user has to free space and start again.
    row = hurt(drill, fill, filler.unlink)
    saved = drill.saved()
    resume(drill, row, saved + (row.unsaved or 0))
    return row


def sshd_stopped(drill: Drill) -> Row:
    """Stop the sshd of a host, and its sessions, while the job starts."""
    command = drill.begin("run")
    wait(lambda: drill.has(0, "supervise"), "no start")
    begun = time.monotonic()
    drill.farm.stop_sshd(drill.farm.hosts[1])
    drill.find(1, "serve").kill()
    printed, _ = command.communicate()
    assert command.returncode == 1, printed
    row = Row(detected=time.monotonic() - begun, reported=printed.strip().splitlines()[-1])
    wait(lambda: not drill.processes(), "processes are left")
    row.clean = time.monotonic() - begun
    return row


def launcher_killed(drill: Drill, action: str) -> Row:
    """Kill the launcher while it starts or stops the job; then stop."""
    if action == "stop":
        drill.start()
    command = drill.begin(action)
    wait(lambda: drill.has(0, "supervise" if action == "run" else "serve"), "it does not begin")
    begun = time.monotonic()
    command.kill()
    command.communicate()
    code, printed = drill.do("stop")
    assert code == 0, printed
    wait(lambda: not drill.processes(), "processes are left")
    return Row(clean=time.monotonic() - begun, reported=drill.failure_shown())


def two_launchers(drill: Drill) -> Row:
    """Start twice at once: one start is refused before it starts anything."""
    commands = [drill.begin("run"), drill.begin("run")]
    printed = [command.communicate()[0] for command in commands]
    codes = [command.returncode for command in commands]
    assert sorted(codes) == [0, 1], printed
    drill.go_on()
    runs = {process.environ()[RUN_ID] for process in drill.training()}
    assert len(runs) == 1, runs
    return Row(reported=printed[codes.index(1)].strip().splitlines()[-1])


def stale(drill: Drill, reused: bool) -> Row:
    """Kill everything at once, and make the states name an earlier boot or unrelated processes."""
    drill.start()
    iteration = drill.iteration()
    drill.clean_up()
    wait(lambda: not drill.processes(), "processes are left")
    unsaved = iteration - drill.saved()
    for number, path in enumerate(drill.files.states()):
        state = json.loads(path.read_text())
        for name in ("supervisor", "guard", "engine"):
            if reused:
                host = drill.farm.hosts[number]
                decoy = next(one for one in drill.decoys if one in drill.farm.processes(host))
                state[name]["pid"] = _pid_inside(decoy)
            else:
                state[name]["birth"] = "another-boot:" + state[name]["birth"].partition(":")[2]
        path.write_text(json.dumps(state))
    begun = time.monotonic()
    reported = drill.failure_shown()
    row = Row(detected=time.monotonic() - begun, reported=reported, unsaved=unsaved)
    code, printed = drill.do("stop")
    assert code == 0, printed
    resume(drill, row, iteration)
    return row


def _pid_inside(process: psutil.Process) -> int:
    """Return the pid of a process in its innermost namespace."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("NSpid:")).split()[-1])


FAULTS: dict[str, tuple[tuple[str, ...], Callable[[Drill], Row]]] = {
    "rank SIGKILL": (RESTART, partial(kill, host=1, kind="rank")),
    "rank SIGSEGV": (RESTART, partial(kill, host=1, kind="rank", number=signal.SIGSEGV)),
    "rank SIGSTOP": ((*RESTART, HANG), partial(kill, host=1, kind="rank", number=signal.SIGSTOP)),
    "rank exception": (RESTART, exception),
    "rank out of memory": (RESTART, out_of_memory),
    "torchrun killed": (RESTART, partial(kill, host=1, kind="torchrun")),
    "supervisor killed": ((), partial(kill, host=1, kind="supervise")),
    "first supervisor killed": ((), partial(kill, host=0, kind="supervise")),
    "host cut off": ((), partial(cut_off, back=False)),
    "host back again": (RESTART, partial(cut_off, back=True)),
    "disk full": ((), disk_full),
    "sshd stopped in start": ((), sshd_stopped),
    "launcher killed in start": ((), partial(launcher_killed, action="run")),
    "launcher killed in stop": ((), partial(launcher_killed, action="stop")),
    "two launchers": ((), two_launchers),
    "reboot": ((), partial(stale, reused=False)),
    "reused pid": ((), partial(stale, reused=True)),
}
"""Per name: overrides of the configuration, and the function that injects the fault."""


@contextmanager
def drilled(folder: Path, name: str) -> Iterator[Drill]:
    """Make a new farm with decoys for one fault, with checkpoints on a small disk."""
    overrides = (*FAULTS[name][0], f"+train.system.checkpoint.save={folder}/disk/checkpoints")
    (folder / "farm").mkdir()
    with (
        mounted(folder / "disk", "64m"),  # enough for 40 checkpoints
        namespace_farm(folder / "farm") as farm,
        decoys(farm, folder) as others,
    ):
        drill = Drill(farm, folder / "drill", overrides, others)
        try:
            yield drill
        finally:
            drill.clean_up()


def line(name: str) -> str:
    """Inject one fault and return its line of the table."""
    with tempfile.TemporaryDirectory() as folder, drilled(Path(folder), name) as drill:
        try:
            row = FAULTS[name][1](drill)
        except Exception as error:  # the other faults must still be measured
            row = Row(reported=f"**{type(error).__name__}: {error}**; {drill.failure_shown()}")
        for host in drill.farm.hosts:
            drill.farm.restore(host)
        drill.farm.start_sshd(*drill.farm.hosts)
        drill.do("stop")
        with suppress(TimeoutError):
            wait(lambda: not drill.processes(), "processes are left", 10)
        left = len(drill.processes())
        living = sum(alive(process) for process in drill.decoys)
        times = [f"{seconds:.1f}" if seconds else "" for seconds in (row.detected, row.clean, row.again)]
        lost = "" if row.lost is None else f"{row.lost} ({row.unsaved})"
        reported = " ".join(row.reported.split()).replace("|", "/")
        cells = (name, *times, lost, str(left), f"{living} of {len(drill.decoys)}", reported[:200])
        return f"| {' | '.join(cells)} |"


def main(words: Sequence[str]) -> None:
    """Inject the faults and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS), metavar="NAME")
    print(HEAD)
    print("|---|---|---|---|---|---|---|---|")
    for name in parser.parse_args(words).only:
        print(line(name), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
