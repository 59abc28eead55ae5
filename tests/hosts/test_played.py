"""A start on many hosts that one process plays, as most of them fail: one report, and nothing goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from flagscale.errors import HostError
from flagscale.remote import launcher
from flagscale.run.rundir import RunDir
from flagscale.values import Channel, Host, LaunchPlan, NodeCommand
from flagscale_testing.farm.parts import AT_START, BEFORE_START, Fault, Part, draw_parts
from flagscale_testing.farm.played import PlayedFarm, played_farm
from flagscale_testing.jobs.plans import fake_plan


@contextmanager
def farm_of(folder: Path, faults: Sequence[Fault | None]) -> Iterator[tuple[PlayedFarm, LaunchPlan]]:
    """Play a host for each fault, and yield the farm with the plan of a job on all of them."""
    drawn = draw_parts(len(faults), scale=0.2)
    parts: list[Part] = [replace(part, fault=fault) for part, fault in zip(drawn, faults, strict=True)]
    with played_farm(folder / "farm", parts) as farm, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(farm.home))
        patch.delenv("SSH_AUTH_SOCK", raising=False)
        yield farm, plan_of(farm, folder / "run")


def plan_of(farm: PlayedFarm, exp_dir: Path) -> LaunchPlan:
    hosts = [Host(rank, part.address, 1, "cpu") for rank, part in enumerate(farm.parts)]
    nodes = [
        NodeCommand(host, ("true",), {}, str(exp_dir), str(RunDir(exp_dir).failure(host)), 1.0)
        for host in hosts
    ]
    channel = Channel(hosts[0].name, 29501)
    return fake_plan(exp_dir, "played", nodes, start_timeout=30.0, channel=channel, connect_timeout=3.0)


def test_a_start_on_sixteen_hosts_succeeds(tmp_path: Path) -> None:
    with farm_of(tmp_path, [None] * 16) as (farm, plan):
        shown: list[tuple[int, int]] = []
        launcher.start(plan, "", {}, done=lambda *numbers: shown.append(numbers))
        assert (len(farm.count("started")), shown[-1]) == (16, (16, 16))
        assert set(farm.count("login").values()) == {1}


def test_every_host_that_cannot_be_reached_is_reported_before_any_starts(tmp_path: Path) -> None:
    with farm_of(tmp_path, [None, *BEFORE_START, *BEFORE_START, None]) as (farm, plan):
        with pytest.raises(HostError) as failure:
            launcher.start(plan, "", {})
        assert list(farm.mistakes_in(str(failure.value))) == []
        assert len(str(failure.value).splitlines()) == 1 + len(BEFORE_START)
        assert not farm.count("start")


def test_every_host_that_fails_to_start_is_reported_and_the_others_are_stopped(tmp_path: Path) -> None:
    with farm_of(tmp_path, [None, *AT_START, None, None]) as (farm, plan):
        with pytest.raises(HostError) as failure:
            launcher.start(plan, "", {})
        assert list(farm.mistakes_in(str(failure.value))) == []
        assert farm.left_running() == []
