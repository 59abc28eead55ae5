"""Jobs and plans for the tests of what is done with them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flagscale.config.schema import Commands, Experiment, Runner, Task
from flagscale.job import Host, Job, LaunchPlan, NodeCommand, Role
from flagscale.launch.launcher import HostStatus
from flagscale.launch.place import place
from flagscale.launch.rundir import RunDir
from flagscale.node.state import Failure, HostState, Phase
from flagscale.platforms import Platform

CHIP = Platform("chip", lambda: 8, env={"CHIP_MODE": "fast", "SHARED": "platform"})


def make_hosts(*slots: int) -> tuple[Host, ...]:
    names = ("localhost",) if len(slots) == 1 else tuple(f"node{rank}" for rank in range(len(slots)))
    return tuple(
        Host(rank, name, count, "chip") for rank, (name, count) in enumerate(zip(names, slots, strict=True))
    )


def make_experiment(
    exp_dir: Path, *, envs: Mapping[str, str] | None = None, cmds: Commands | None = None, **runner: Any
) -> Experiment:
    return Experiment(
        name="demo",
        exp_dir=exp_dir,
        task=Task(backend="megatron", entrypoint="megatron.flagscale.train_gpt"),
        runner=Runner(**runner),
        envs=dict(envs or {}),
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
        secrets={"WANDB_API_KEY": "geheim"},
    )


def make_plan(
    exp_dir: Path, *slots: int, job: Job | None = None, run_id: str = "demo-1", **settings: Any
) -> LaunchPlan:
    return place(
        job or make_job(*slots),
        make_experiment(exp_dir, **settings),
        {"chip": CHIP},
        run_id=run_id,
        python="/usr/bin/python3",
        source_root=Path("/source"),
        cwd=Path("/"),
    )


def options(node: NodeCommand) -> dict[str, str]:
    """The options of torchrun in a node's argv."""
    words = list(node.argv)
    own = words[words.index("megatron.flagscale.torchrun") + 1 :]
    found = {}
    while own and own[0].startswith("--") and own[0] != "--module":
        found[own[0]] = own[1]
        own = own[2:]
    return found


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
