"""A machine's constants are fitted on few measurements without following their noise."""

from __future__ import annotations

import pytest

from flagscale.planner.calibration import HOSTS, Calibration, at_host, fitted, fitted_machine


def test_without_measurements_nothing_changes() -> None:
    assert fitted() == Calibration()
    assert (Calibration().seconds(2.5), Calibration().nbytes(2.5)) == (2.5, 2.5)


def test_one_time_gives_the_scale_alone() -> None:
    found = fitted([(2.0, 3.0)])
    assert (found.scale, found.offset_s) == (pytest.approx(1.5), 0)
    assert found.seconds(4.0) == pytest.approx(6)


def test_times_of_one_scale_have_no_offset() -> None:
    found = fitted([(1, 1.3), (2, 2.6), (40, 52)])
    assert found.scale == pytest.approx(1.3)
    assert found.offset_s == pytest.approx(0, abs=1e-9)


def test_a_constant_time_is_seen_if_the_times_differ_enough() -> None:
    found = fitted([(0.1, 0.6), (1, 1.5), (20, 20.5)])
    assert 0.1 < found.offset_s < 0.5
    assert found.seconds(0.1) < 0.6


@pytest.mark.parametrize("times", [[(1, 0.9), (1, 1.1)], [(1, 1.1), (2, 1.9)], [(1, 1), (2, 1), (3, 1)]])
def test_noise_is_not_an_offset_that_spoils_other_jobs(times: list[tuple[float, float]]) -> None:
    found = fitted(times)
    assert found.offset_s >= 0
    assert 0.1 <= found.scale <= 10
    assert found.seconds(0.01) < 1
    assert 5 < found.seconds(20) < 25


def test_memory_takes_the_part_that_all_differences_share() -> None:
    assert fitted(memories=[(10, 12)]).memory_bytes == 2
    assert fitted(memories=[(10, 12), (20, 23), (5, 9)]).memory_bytes == 2
    assert fitted(memories=[(10, 9), (20, 17)]).memory_bytes == -1
    assert fitted(memories=[(10, 12), (20, 19)]).memory_bytes == 0
    assert Calibration(memory_bytes=-5).nbytes(3) == 0


def test_pairs_that_say_nothing_drop_out() -> None:
    assert fitted([(0, 1), (1, 0)], [(0, 1)]) == Calibration()


def job(device: float, host: float) -> list[float]:
    """Return the seconds of a job at each of `HOSTS`: what takes longer decides."""
    return [max(device, host * factor) for factor in HOSTS]


def test_a_slow_host_is_told_from_a_slow_device() -> None:
    small, large, other = job(0.1, 0.2), job(3, 0.2), job(0.5, 0.4)
    found = fitted_machine(
        [small, large], [0.8, 3.3]
    )  # the host takes four times as long, the device 10 % more
    assert found.scale == pytest.approx(1.1, rel=0.05)
    assert found.host == pytest.approx(4, rel=0.2)
    assert found.seconds(at_host(other, found.host)) == pytest.approx(1.6, rel=0.15)


def test_a_host_that_no_job_shows_stays_as_it_is() -> None:
    found = fitted_machine([job(1, 1e-6), job(3, 1e-6)], [1.5, 4.5])
    assert (found.host, found.offset_s) == (1, 0)
    assert found.scale == pytest.approx(1.5)
    assert fitted_machine([job(1, 0.1)], [2.0]) == Calibration(scale=2.0)
    assert fitted_machine([], []) == Calibration()


def test_between_hosts_times_are_linear() -> None:
    assert at_host(job(0, 1), 1) == 1
    assert at_host(job(0, 1), 3) == pytest.approx(3)
    assert at_host(job(0, 1), 0.01) == HOSTS[0]
    assert at_host(job(0, 1), 100) == HOSTS[-1]
