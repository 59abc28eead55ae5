"""`experiment.runner.slurm`: the options of sbatch, what they mean for the hosts, and the batch script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from flagscale.config.load import load_experiment
from flagscale.config.schema import Runner
from flagscale.config.source_map import index_sources
from flagscale.config.text_values import restore_texts
from flagscale.errors import UserError
from flagscale.plan.hostfile import HostLine
from flagscale.plan.runner import LocalDevices
from flagscale.runners.slurm import directives, options
from flagscale.runners.slurm.declared import limit_seconds
from flagscale.runners.slurm.keys import checked, gpus_per_host, planned_hosts, problems, words
from flagscale.values import Host, LaunchPlan, NodeCommand

HELP = """Usage: sbatch [OPTIONS(0)...] script(0) [args(0)...]
  -A, --account=name          charge job to specified account
      --brand-new[=value]     of a version that is not out yet
  -n, --ntasks=ntasks         number of tasks to run
"""


def runner(**keys: Any) -> Runner:
    return Runner.model_validate({"type": "slurm", "platform": "cpu", **keys})


def at(key: str) -> str:
    return f"c.yaml:1: {key}"


def found(**keys: Any) -> list[str]:
    return [str(one) for one in problems(runner(**keys), at)]


@pytest.fixture(autouse=True)
def no_sbatch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")


def test_the_options_of_sbatch_are_keys() -> None:
    slurm = {"partition": "gpu", "time": "1:30:00", "account": "007", "cpus_per_task": 4, "exclusive": True}
    assert found(slurm=slurm) == []
    given = runner(slurm=slurm).slurm.options()
    assert words(given) == [
        "--partition=gpu",
        "--time=1:30:00",
        "--account=007",
        "--cpus-per-task=4",
        "--exclusive",
    ]
    assert words({"exclusive": "user", "hold": "false", "comment": "no"}) == [
        "--exclusive=user",
        "--comment=no",
    ]


@pytest.mark.parametrize(
    ("slurm", "message"),
    [
        ({"partitoin": "x"}, "sbatch has no option `--partitoin`\n    did you mean `partition`?"),
        ({"nnodes": 2}, "no option `--nnodes`\n    it is a key of FlagScale: experiment.runner.nnodes"),
        ({"nodes": 2}, "`nodes` cannot be given: use experiment.runner.nnodes"),
        (
            {"array": "1-3"},
            "`array` cannot be given: a run directory holds one run; for several, use a sweep",
        ),
        ({"job_name": "x"}, "`job_name` cannot be given: it is the run id, which begins with"),
        ({"hold": "x"}, "`hold`: expected true or false, not `x`"),
        ({"partition": True}, "`partition`: a value is required, not `true`"),
        ({"comment": "x\n#SBATCH --uid=0"}, "`comment`: a value is one line without control characters"),
        ({"requeue": True, "signal": "USR1@60"}, "would not reach the job's script"),
    ],
)
def test_mistakes_name_the_key(slurm: dict[str, Any], message: str) -> None:
    (problem,) = found(slurm=slurm)
    assert message in problem
    assert problem.startswith(f"c.yaml:1: experiment.runner.slurm.{[*slurm][-1]}: ")


def test_an_option_of_a_newer_sbatch_is_taken_if_the_installed_one_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "brand-new" not in options.OPTIONS
    assert len(found(slurm={"brand_new": "x"})) == 1
    program = tmp_path / "sbatch"
    program.write_text(f"#!/bin/sh\n/bin/cat <<'E'\n{HELP}E\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert found(slurm={"brand_new": "x"}) == []
    assert "--brand-newer" in found(slurm={"brand_newer": "x"})[0]
    assert options.parse_help(HELP) == {"account": "value", "brand-new": "either"}


@pytest.mark.parametrize(
    ("given", "gpus"),
    [
        ({}, None),
        ({"gres": "gpu:8"}, 8),
        ({"gres": "gpu"}, 1),
        ({"gres": "gpu:a100:4(S:0-1),tmp:5"}, 4),
        ({"gres": "gres/gpu=3"}, 3),
        ({"gres": "gpu:a:2,gpu:b:3"}, 5),
        ({"gres": "gpumem:8"}, None),
        ({"gpus_per_node": "a100:8"}, 8),
        ({"gpus": "16"}, None),
    ],
)
def test_gpus_per_host(given: dict[str, str], gpus: int | None) -> None:
    assert gpus_per_host(given) == gpus


SHARED, CHIPS = LocalDevices("cpu", 1, are_shared=True), LocalDevices("chip", 0, are_shared=False)


def test_hosts_are_planned_before_slurm_chooses_them() -> None:
    assert planned_hosts(runner(nnodes=2), SHARED, at) == (HostLine("host-0", 1), HostLine("host-1", 1))
    asked = runner(nnodes="1:2", slurm={"gres": "gpu:4"})
    assert planned_hosts(asked, CHIPS, at) == (HostLine("host-0", 4), HostLine("host-1", 4))
    assert planned_hosts(runner(nproc_per_node=3), CHIPS, at) == (HostLine("host-0", 3),)


def test_groups_of_hosts_have_their_own_options() -> None:
    groups = [
        {"nnodes": 1, "gres": "gpu:2", "type": "A"},
        {"nnodes": 2, "nproc_per_node": 1, "constraint": "b"},
    ]
    asked = runner(slurm={"groups": groups, "gres": "gpu:4"})
    assert found(slurm={"groups": groups}) == []
    assert planned_hosts(asked, CHIPS, at) == (
        HostLine("host-0", 2, "A"),
        HostLine("host-1", 1),
        HostLine("host-2", 1),
    )
    (wrong,) = found(slurm={"groups": [{"nnodes": 1, "requeue": "true"}]})
    assert "groups.0.requeue: `requeue` cannot be given: it holds for the whole job" in wrong
    (wrong,) = found(nnodes=2, slurm={"groups": groups})
    assert "nnodes is 2, but the groups of experiment.runner.slurm.groups have 3 hosts" in wrong


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "it is not known how many ranks each host has"),
        ({"nproc_per_node": 8, "slurm": {"gres": "gpu:4"}}, "only 4 GPUs are asked for on each host"),
    ],
)
def test_ranks_without_gpus_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        planned_hosts(runner(**keys), CHIPS, at)


def test_the_chip_of_a_login_node_is_not_that_of_the_job() -> None:
    with pytest.raises(UserError, match="Slurm chooses the hosts"):
        checked(runner(platform="auto"), at)
    assert checked(runner(platform="auto", slurm={"gres": "gpu:8"}), at).platform not in ("auto", "cpu")
    assert checked(runner(), at).platform == "cpu"


def plan(folder: str, slurm: dict[str, Any], hosts: int = 2) -> LaunchPlan:
    nodes = tuple(
        NodeCommand(Host(rank, f"host-{rank}", 4, "cpu"), (), {}, "/work", "", 10.0) for rank in range(hosts)
    )
    return LaunchPlan(
        run_id="demo-1",
        name="demo",
        task_type="train",
        engine="megatron",
        engine_version="1",
        layout="TP 2",
        world_size=4 * hosts,
        exp_dir=folder,
        python="/usr/bin/python3",
        source_root="/clone",
        before_start="",
        after_stop="",
        start_timeout=1.0,
        nodes=nodes,
        slurm=slurm,
    )


SCRIPT = r"""#!/bin/bash
#SBATCH --job-name=demo-1
#SBATCH --chdir=/work
#SBATCH --output="/my runs/50%%/logs/slurm.output"
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@30
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --partition=gpu
#SBATCH --comment="it's \"mine\" # \\ $HOME"
#SBATCH --exclusive
# demo: 2 hosts, 8 ranks (TP 2)
# The command starts one task per host with srun, waits for them, and requeues the job if asked to.
export PYTHONUNBUFFERED=1
"""


def test_the_batch_script() -> None:
    comment = r"""it's "mine" # \ $HOME"""
    slurm = {"requeue": True, "partition": "gpu", "comment": comment, "exclusive": "true", "hold": "false"}
    ((path, text),) = directives.scripts(plan("/my runs/50%", slurm)).items()
    assert path == Path("/my runs/50%/logs/scripts/slurm.sh")
    assert text.startswith(SCRIPT)
    assert text.endswith("exec /usr/bin/python3 -m flagscale.runners.slurm.batch '/my runs/50%'\n")
    assert "export PYTHONPATH=/clone" in text


def test_the_batch_script_of_groups() -> None:
    groups = [{"nnodes": 1, "constraint": "a"}, {"nnodes": 2, "time": "5"}]
    ((_, text),) = directives.scripts(plan("/runs", {"time": "9", "groups": groups}, hosts=3)).items()
    lines = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH ")]
    assert lines[4:] == [
        "--no-requeue",
        "--signal=B:USR1@30",
        "--nodes=1",
        "--ntasks-per-node=1",
        "--time=9",
        "--constraint=a",
        "hetjob",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--time=5",
    ]


def test_variables_of_sbatch_do_not_override_what_is_given() -> None:
    found = directives.overriding(plan("/runs", {"time": "5", "partition": "gpu"}))
    assert {"SBATCH_TIMELIMIT", "SBATCH_PARTITION", "SBATCH_JOB_NAME", "SBATCH_REQUEUE"} <= found
    assert found.isdisjoint({"SBATCH_ACCOUNT", "SBATCH_EXPORT", "SBATCH_QOS"})


def test_no_second_directive_comes_from_a_path() -> None:
    with pytest.raises(UserError, match="cannot hold"):
        directives.scripts(plan("/runs\n#SBATCH --uid=0", {}))


def test_values_arrive_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "experiment:\n  exp_name: x\n  exp_dir: /tmp/x\n  task: {backend: megatron}\n  runner:\n"
        "    slurm:\n      time: 1:30:00\n      account: 007\n      exclusive: yes\n      nice: 1e3\n"
        "      groups:\n        - {nnodes: 1, time: 2:30, mem: 010}\ntrain: {}\n"
    )
    config, source_map = OmegaConf.load(path), index_sources([(path, "")])
    assert isinstance(config, DictConfig)
    restore_texts(config, source_map)
    loaded = load_experiment(config, source_map)
    assert loaded.experiment, loaded.problems
    slurm = loaded.experiment.runner.slurm
    assert slurm.options() == {"time": "1:30:00", "account": "007", "exclusive": "yes", "nice": "1e3"}
    assert slurm.groups[0].options() == {"time": "2:30", "mem": "010"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("1:30:00", 5400),
        ("1-2", 93600),
        ("1-2:30", 95400),
        ("0-0:1:5", 65),
        ("UNLIMITED", None),
        ("", None),
        ("1-2-3", None),
    ],
)
def test_time_limits(text: str, seconds: float | None) -> None:
    assert limit_seconds(text) == seconds


def test_a_time_limit_without_time_to_save_is_refused() -> None:
    assert directives.scripts(plan("/runs", {"time": "1:30"}))
    with pytest.raises(UserError, match="the time limit is 89 s, but the ranks are told 30 s before it"):
        directives.scripts(plan("/runs", {"time": "1:29"}))
    assert directives.scripts(plan("/runs", {"time": "1:29", "signal": "B:USR1@20"}))
