"""`make fuzz`: 10 000 trials at random in this process, and 20 as real commands; the slowest are reported.

    python -m tests.fuzz [TRIALS [COMMANDS]]

A trial that breaks a promise is reduced to its smallest form and printed, with the line to repeat it.
"""

from __future__ import annotations

import sys
import time
import warnings
from functools import partial

from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy, sampled_from, tuples

from tests.fuzz import slips
from tests.fuzz.projects import Project
from tests.fuzz.ssh_files import SshFiles, read_ssh_files, ssh_slips
from tests.fuzz.trial import broken_promise, command, dryrun

_SHARES = {
    "experiment files": (0.33, slips.yaml_slips(of_task=False)),
    "task files": (0.26, slips.yaml_slips(of_task=True)),
    "hostfiles": (0.08, slips.hostfile_slips()),
    "command lines": (0.26, slips.word_slips()),
}
_SHARE_OF_SSH = 0.07
_AT_RANDOM = partial(
    settings, deadline=None, database=None, print_blob=True, suppress_health_check=list(HealthCheck)
)


def _fuzz(kind: str, trials: int, strategy: SearchStrategy[Project]) -> None:
    done: list[tuple[float, Project]] = []

    @_AT_RANDOM(max_examples=trials)
    @given(strategy)
    def check(project: Project) -> None:
        outcome = dryrun(project)
        done.append((outcome.seconds, project))
        broken = broken_promise(outcome)
        assert not broken, broken

    start = time.monotonic()
    check()
    _report(kind, time.monotonic() - start, done)


def _fuzz_ssh(trials: int) -> None:
    took: list[float] = []

    @_AT_RANDOM(max_examples=trials)
    @given(ssh_slips())
    def check(files: SshFiles) -> None:
        start = time.monotonic()
        read_ssh_files(files)
        took.append(time.monotonic() - start)

    check()
    print(
        f"SSH configurations: {len(took)} trials in {sum(took):.0f} s; the slowest: {max(took) * 1000:.0f} ms"
    )


def _fuzz_commands(commands: int) -> None:
    done: list[tuple[float, Project]] = []
    anything = slips.yaml_slips(of_task=False) | slips.yaml_slips(of_task=True) | slips.word_slips()

    @_AT_RANDOM(max_examples=commands)
    @given(tuples(sampled_from(["dryrun", "check"]), anything))
    def check(drawn: tuple[str, Project]) -> None:
        action, project = drawn
        outcome = command(project, action)
        done.append((outcome.seconds, project))
        # `check` asks the hosts, which may not be there.
        broken = broken_promise(outcome, (0, 2) if action == "dryrun" else (0, 1, 2))
        assert not broken, broken

    start = time.monotonic()
    check()
    _report("real commands", time.monotonic() - start, done)


def _report(kind: str, seconds: float, done: list[tuple[float, Project]]) -> None:
    each = sum(took for took, _ in done) / len(done)
    print(f"{kind}: {len(done)} trials in {seconds:.0f} s, {each * 1000:.0f} ms per command; the slowest:")
    for took, project in sorted(done, key=lambda pair: -pair[0])[:3]:
        print(f"    {took * 1000:6.0f} ms  {project.name} {' '.join(project.words)!a}", flush=True)


def main(trials: int = 10_000, commands: int = 20) -> None:
    warnings.simplefilter("ignore")
    for kind, (share, strategy) in _SHARES.items():
        _fuzz(kind, round(trials * share), strategy)
    _fuzz_ssh(round(trials * _SHARE_OF_SSH))
    _fuzz_commands(commands)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
