"""What a trial has shown: a robust time, its noise, and the reason if it has none."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagscale.remote.launcher import HostStatus
from flagscale.run.failure import Failure, is_out_of_memory
from flagscale.run.state import HostState
from flagscale.status.model import job_status
from flagscale.tuning.outcome import Outcome, noise_of, outcome_of, step_seconds
from tests.unit.plans import make_plan


def ended(
    failure: Failure | None = None, printed: str = "", *, times: tuple[float, ...] = (), is_cut: bool = False
) -> Outcome:
    plan = make_plan(Path("run"))
    phase = "failed" if failure else "finished"
    hosts = [HostStatus(host, HostState(plan.run_id, phase, failure=failure)) for host in plan.hosts]
    records = [{"iteration": number, "iteration_ms": 1000 * one} for number, one in enumerate(times, 1)]
    return outcome_of(job_status(plan, hosts, None), records, printed, 60, is_cut=is_cut)


@pytest.mark.parametrize(
    ("times", "seconds"),
    [
        ((), None),
        ((9.0,), None),
        ((9.0, 1.0), 1.0),
        ((9.0, 3.0, 1.0), 2.0),
        ((9.0, 5.0, 1.0, 3.0), 2.0),
        ((9.0, 5.0, 1.0, 1.0, 2.0, 50.0), 1.5),
    ],
)
def test_the_first_iterations_and_outliers_do_not_count(times: tuple[float, ...], seconds: float) -> None:
    assert step_seconds(times) == seconds


def test_the_noise_of_a_time() -> None:
    assert noise_of((9.0, 9.0, 1.0, 1.0, 1.0)) == 0
    assert noise_of((9.0, 9.0, 1.0, 1.2, 0.8, 1.0)) == pytest.approx(0.0816, abs=0.001)
    assert noise_of((9.0, 1.0)) == 0


@pytest.mark.parametrize(
    "text",
    [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory",
        "RuntimeError: NPU out of memory. Tried to allocate",
        "MemoryError",
        "rank 1: the kernel killed it because this host ran out of memory",
        "OSError: [Errno 12] Cannot allocate memory",
    ],
)
def test_memory_that_was_short_is_recognised(text: str) -> None:
    assert is_out_of_memory(text)
    assert ended(Failure(text, rank=0, traceback=text)).state == "out of memory"
    silent = ended(Failure("rank 0 ended with exit code 1", rank=0), f"[rank0]: {text}\nmore")
    assert silent.state == "out of memory"


def test_other_failures_are_failures() -> None:
    assert not is_out_of_memory("KeyError: 'memory'")
    seen = ended(Failure("rank 0 ended with exit code 1"), "a line\n[default0]:ValueError: too small\nlast")
    assert (seen.state, seen.failure.endswith("ValueError: too small")) == ("failed", True)
    told = ended(
        Failure("AssertionError: no", rank=2, traceback="out of sight"), "RuntimeError: out of memory"
    )
    assert (told.state, told.failure.endswith("rank 2: AssertionError: no")) == ("failed", True)


def test_what_was_measured_before_the_time_was_over_counts() -> None:
    assert ended(times=(2.0, 1.0), is_cut=True).state == "measured"
    assert ended(times=(2.0,), is_cut=True).failure.startswith("1 iteration within 60 s")
    assert ended(is_cut=True).state == "too slow"
    assert ended().state == "failed"
    assert ended(times=(2.0, 1.0)).seconds == 1.0
