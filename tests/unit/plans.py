"""Jobs, plans and fake hosts that several tests use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flagscale import __version__
from flagscale.config.schema import Commands, Environment, Experiment, Runner, Task
from flagscale.plan.placement import build_plan
from flagscale.plan.runner import Share
from flagscale.platforms import Platform
from flagscale.remote.launcher import HostStatus
from flagscale.run.failure import Failure
from flagscale.run.rundir import RunDir
from flagscale.run.state import HostState, Phase, Reply
from flagscale.values import Host, Job, LaunchPlan, Role

CHIP = Platform(
    "chip", lambda: 8, env={"CHIP_MODE": "fast", "SHARED": "platform"}, rank_env={"ORDER": "kept"}
)


def make_hosts(*slots: int) -> tuple[Host, ...]:
    names = ("localhost",) if len(slots) == 1 else tuple(f"node{rank}" for rank in range(len(slots)))
    return tuple(
        Host(rank, name, count, "chip") for rank, (name, count) in enumerate(zip(names, slots, strict=True))
    )


def make_experiment(
    exp_dir: Path, *, envs: Mapping[str, Any] | None = None, cmds: Commands | None = None, **runner: Any
) -> Experiment:
    return Experiment(
        name="demo",
        exp_dir=exp_dir,
        task=Task(backend="megatron", entrypoint="megatron.flagscale.train_gpt"),
        runner=Runner(**runner),
        envs=Environment.model_validate(dict(envs or {})),
        cmds=cmds or Commands(),
        arguments={},
    )


def make_job(*slots: int, argv: tuple[str, ...] = ("--lr", "1e-3"), entrypoint: str = "a.module") -> Job:
    return Job(
        name="demo",
        task_type="train",
        engine="megatron",
        engine_version="1.2.3",
        role=Role("train", entrypoint, argv, env={"ROLE": "yes", "SHARED": "role"}, stop_grace=7.0),
        hosts=make_hosts(*slots or (4,)),
        layout="tp2 x dp2",
        picture="a table",
        secrets={"WANDB_API_KEY": "geheim"},
    )


def make_plan(
    exp_dir: Path, *slots: int, job: Job | None = None, run_id: str = "demo-1", **settings: Any
) -> LaunchPlan:
    return build_plan(
        job or make_job(*slots),
        make_experiment(exp_dir, **settings),
        {host.platform: CHIP for host in (job or make_job(*slots)).hosts},
        run_id=run_id,
        python="/usr/bin/python3",
        source_root=Path("/source"),
        cwd=Path("/"),
        share=Share(exp_dir),
    )


GOOD: Mapping[str, Any] = {
    "flagscale": __version__,
    "engine": "1.2.3",
    "missing": [],
    "time": 0.0,
    "devices": 8,
    "busy": 0,
    "disk_free": 2**40,
    "writable": True,
    "directory": "/r",
    "sees_mark": True,
    "wrong_inputs": [],
    "odd_tokenizers": [],
    "taken_ports": [],
}
"""The answer of a probe that finds nothing wrong (except for the time and the engine's version)."""

Answer = Reply | Callable[[list[str]], Reply]


class FakeHosts:
    """Hosts with prepared answers, `answers[name][verb]`; any other request is a failure."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **answers: Mapping[str, Answer]) -> None:
        self.answers = {name: {"ready": {"ok": True}, **known} for name, known in answers.items()}
        self.asked: list[tuple[str, list[str]]] = []
        for name in ("transport", "transport_of_start"):
            monkeypatch.setattr(
                f"flagscale.remote.hosts.{name}", lambda access: FakeTransport(self, access.host)
            )

    def verbs(self, name: str) -> list[str]:
        return [words[0] for host, words in self.asked if host == name]


@dataclass(frozen=True)
class FakeTransport:
    """The transport to one of these hosts."""

    hosts: FakeHosts
    name: str

    def call(self, words: list[str], seconds: float) -> Reply:
        self.hosts.asked.append((self.name, words))
        answer = self.hosts.answers[self.name][words[0]]
        return answer(words) if callable(answer) else dict(answer)


def host_status(
    plan: LaunchPlan,
    rank: int,
    phase: Phase | None,
    failure: Failure | None = None,
    trouble: str = "",
    processes: int = 0,
) -> HostStatus:
    state = HostState(plan.run_id, phase, started=100.0, failure=failure) if phase else None
    return HostStatus(plan.nodes[rank].host, state, processes, trouble)


def write_log(plan: LaunchPlan, rank: int, text: str) -> Path:
    path = RunDir(Path(plan.exp_dir)).output(plan.nodes[rank].host)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(text)
    return path
