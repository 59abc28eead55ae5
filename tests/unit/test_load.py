"""The experiment level: every mistake at once, each with its place, and none accepted silently."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from flagscale import registry
from flagscale.config.command import (
    CommandOptions,
    RunLocation,
    ignored_keys,
    load_action,
    load_command_keys,
    load_run_location,
)
from flagscale.config.schema import Environment, Experiment
from flagscale.config.source_map import SourceMap
from flagscale.errors import Problem, UserError
from tests.unit.conftest import EXPERIMENT

Load = Callable[..., Experiment]
Mistakes = Callable[..., list[Problem]]


def texts(problems: list[Problem]) -> list[str]:
    return [f"{problem.where}: {problem.what}" for problem in problems]


def test_a_good_file(load: Load, tmp_path: Path) -> None:
    experiment = load()
    assert experiment.name == "demo"
    assert experiment.exp_dir == tmp_path / "outputs" / "demo"
    assert experiment.runner.nproc_per_node == 4
    assert experiment.runner.ssh_port is None
    assert experiment.arguments == {"model": {"num_layers": 4}}


def test_interpolation_and_environment_are_resolved(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "/data/with space")
    experiment = load(
        EXPERIMENT,
        "experiment.exp_dir=${oc.env:PLACE}/${experiment.exp_name}",
        "train.model.hidden=${train.model.num_layers}",
    )
    assert experiment.exp_dir == Path("/data/with space/demo")
    assert experiment.arguments["model"]["hidden"] == 4


def test_home_and_relative_paths_become_absolute(load: Load, tmp_path: Path) -> None:
    experiment = load(EXPERIMENT, "experiment.exp_dir=~/x", "experiment.runner.hostfile=hosts")
    assert experiment.exp_dir == Path.home() / "x"
    assert experiment.runner.hostfile == str(tmp_path / "hosts")


def test_empty_groups_and_null_mean_the_default(load: Load) -> None:
    empty = "  runner:\n  envs:\n  cmds: {before_start: null}\n"
    experiment = load(EXPERIMENT.replace("  runner:\n    nproc_per_node: 4\n", empty))
    assert experiment.runner.nproc_per_node == "auto"
    assert experiment.envs == Environment()
    assert experiment.cmds.before_start == ""


def test_environment_values_become_text(load: Load) -> None:
    experiment = load(EXPERIMENT, "experiment.envs={A: 1, B: true, C: 0.5, D: '', e_f: x}")
    assert experiment.envs.common() == {"A": "1", "B": "true", "C": "0.5", "D": "", "e_f": "x"}


def test_every_mistake_is_reported_at_once_with_file_line_and_nearest_name(mistakes: Mistakes) -> None:
    text = """\
experiment:
  exp_dir: ./outputs
  tsk: {}
  task:
    type: train
    backend: megatron
    entrypoint: x.py
  runner:
    nnods: 2
    ssh_port: 99999
    nproc_per_node: abc
    max_restarts: true
train: {}
trian: {}
"""
    found = {problem.where: problem for problem in mistakes(text)}
    assert set(found) == {
        "config.yaml:1: experiment.exp_name",
        "config.yaml:3: experiment.tsk",
        "config.yaml:9: experiment.runner.nnods",
        "config.yaml:10: experiment.runner.ssh_port",
        "config.yaml:11: experiment.runner.nproc_per_node",
        "config.yaml:12: experiment.runner.max_restarts",
        "config.yaml:14: trian",
    }
    assert found["config.yaml:3: experiment.tsk"].hint == "did you mean `task`?"
    assert found["config.yaml:9: experiment.runner.nnods"].hint == "did you mean `nnodes`?"
    assert found["config.yaml:14: trian"].hint == "did you mean `train`?"


@pytest.mark.parametrize("value", ["abc", "true", "0", "-1", "1.5", "[1]", "{a: 1}", "auto8", "8 GPUs"])
def test_ranks_that_are_not_a_number_are_reported_once(mistakes: Mistakes, value: str) -> None:
    (problem,) = mistakes(EXPERIMENT.replace("nproc_per_node: 4", f"nproc_per_node: {value}"))
    assert "`auto` or a whole number of at least 1" in problem.what


def test_options_of_torchrun_are_kept(load: Load) -> None:
    given = ["redirects='0:3,1:0'", "tee=1", "rdzv_conf='timeout=30,last_call_timeout=5'"]
    runner = load(EXPERIMENT, *(f"experiment.runner.{key}" for key in given)).runner
    assert (runner.redirects, runner.tee) == ("0:3,1:0", "1")
    assert runner.rdzv_conf == "timeout=30,last_call_timeout=5"


@pytest.mark.parametrize("value", ["8", '"8"', "auto"])
def test_ranks(load: Load, value: str) -> None:
    assert load(
        EXPERIMENT.replace("nproc_per_node: 4", f"nproc_per_node: {value}")
    ).runner.nproc_per_node in (8, "auto")


def test_a_range_of_hosts_needs_quotes(load: Load, mistakes: Mistakes) -> None:
    # Unquoted, YAML reads 1:4 as 64.
    (problem,) = mistakes(EXPERIMENT.replace("nproc_per_node: 4", "nnodes: 1:4"))
    assert problem.where == "config.yaml:9: experiment.runner.nnodes"
    assert problem.what == "YAML reads `1:4` as the number 64"
    assert load(EXPERIMENT.replace("nproc_per_node: 4", 'nnodes: "1:4"')).runner.nnodes == "1:4"


@pytest.mark.parametrize(
    ("value", "nnodes", "of_eight"),
    [
        ("", None, (8, 8)),
        ("3", 3, (3, 3)),
        ('"3"', 3, (3, 3)),
        ('"3:3"', 3, (3, 3)),
        ('"2:4"', "2:4", (2, 4)),
        ('" 2 : 4 "', "2:4", (2, 4)),
    ],
)
def test_numbers_of_hosts(load: Load, value: str, nnodes: object, of_eight: tuple[int, int]) -> None:
    runner = load(EXPERIMENT.replace("nproc_per_node: 4", f"nnodes: {value}")).runner
    assert runner.nnodes == nnodes
    assert runner.host_range(8) == of_eight


@pytest.mark.parametrize(
    ("value", "says"),
    [
        *[
            (value, 'a whole number of hosts, or "min:max"')
            for value in (
                "two",
                "true",
                "1.5",
                "[1]",
                "{a: 1}",
                '""',
                '":"',
                '"2:"',
                '":4"',
                '"1:2:3"',
                '"-1:4"',
            )
        ],
        *[(value, "at least 1") for value in ("0", '"0:4"', '"4:2"')],
    ],
)
def test_a_wrong_number_of_hosts_is_reported_once(mistakes: Mistakes, value: str, says: str) -> None:
    (problem,) = mistakes(EXPERIMENT.replace("nproc_per_node: 4", f"nnodes: {value}"))
    assert problem.where == "config.yaml:9: experiment.runner.nnodes"
    assert says in problem.what


def test_a_base_60_number_that_is_overridden_is_not_a_mistake(load: Load) -> None:
    text = EXPERIMENT.replace("nproc_per_node: 4", "nnodes: 1:4")
    assert load(text, "experiment.runner.nnodes=2").runner.nnodes == 2


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("experiment.exp_name=[a]", "valid string"),
        ("experiment.exp_dir=5", "valid string"),
        ("experiment.runner.nnodes=two", "whole number of hosts"),
        ("experiment.runner.nnodes=true", "whole number of hosts"),
        ("experiment.runner.master_port=0", "greater than or equal to 1"),
        ("experiment.runner.redirects=9", "3 (both)"),
        ("experiment.runner.tee='0:3,1'", "3 (both)"),
        ("experiment.runner.rdzv_conf='timeout'", "key=value"),
        ("experiment.runner.start_timeout=0", "greater than 0"),
        ("experiment.runner.backend=mpirun", "'torchrun'"),
        ("experiment.runner=4", "group of keys"),
        ("experiment.envs=[A]", "group of keys"),
        ("experiment.envs={A: {b: 1}}", "valid string"),
        ("experiment.envs={A-B: 1}", "letters, digits and `_`"),
        ("experiment.envs={1A: 1}", "letters, digits and `_`"),
        ("experiment.cmds.before_start=[a, b]", "valid string"),
        ("experiment.task.type=trian", "the engine `megatron` does not support `trian`"),
        ("experiment.task.type=[train]", "input should be a valid string"),
    ],
)
def test_a_wrong_value_is_one_mistake_blamed_on_the_command_line(
    mistakes: Mistakes, override: str, says: str
) -> None:
    (problem,) = mistakes(EXPERIMENT, override)
    assert says in problem.what
    assert problem.where.startswith("command line: experiment.")


def test_a_bad_environment_name_is_reported_with_its_key(mistakes: Mistakes) -> None:
    (problem,) = mistakes(EXPERIMENT.replace("  runner:", "  envs:\n    int-eger: 1\n  runner:"))
    assert problem.where == "config.yaml:9: experiment.envs.int-eger"


@pytest.mark.parametrize("key", ["int8", "float_x", "literal[", "function-x"])
def test_unknown_keys_named_like_types_are_named(mistakes: Mistakes, key: str) -> None:
    (problem,) = mistakes(EXPERIMENT.replace("nproc_per_node: 4", f"'{key}': 4"))
    assert problem.what == f"unknown key `{key}`"


def test_the_value_of_a_secret_is_not_shown(mistakes: Mistakes) -> None:
    (problem,) = mistakes(EXPERIMENT, "experiment.envs={HF_TOKEN: [hf_secret]}")
    assert "hf_secret" not in str(problem)


def test_missing_required_values(mistakes: Mistakes) -> None:
    found = mistakes(
        EXPERIMENT.replace("exp_name: demo", "exp_name: ???").replace("num_layers: 4", "num_layers: ???")
    )
    assert texts(found) == [
        "config.yaml:2: experiment.exp_name: a value is required here (it is `???`)",
        "config.yaml:12: train.model.num_layers: a value is required here (it is `???`)",
    ]


def test_failing_interpolations_are_reported_once_each(mistakes: Mistakes) -> None:
    found = mistakes(
        EXPERIMENT.replace("exp_name: demo", "exp_name: ${nowhere}").replace(
            "num_layers: 4", "num_layers: ${oc.env:NOT_SET_1}"
        )
    )
    assert [problem.where for problem in found] == [
        "config.yaml:2: experiment.exp_name",
        "config.yaml:12: train.model.num_layers",
    ]
    assert "nowhere" in found[0].what
    assert "NOT_SET_1" in found[1].what


@pytest.mark.parametrize("value", ["${train}", "${train.model}", "${train.model.num_layers}"])
def test_an_interpolation_that_refers_to_itself(mistakes: Mistakes, value: str) -> None:
    (problem,) = mistakes(EXPERIMENT.replace("num_layers: 4", f"num_layers: {value}"))
    assert problem.where.startswith("config.yaml:12: train.model.num_layers")


def test_a_missing_experiment(mistakes: Mistakes) -> None:
    assert texts(mistakes("train: {}\n")) == ["experiment: this group is missing"]
    assert texts(mistakes("experiment: 4\nserve: {}\n")) == [
        "config.yaml:1: experiment: a group of keys is expected here"
    ]
    assert len(mistakes("experiment: ${nowhere}\ntrain: {}\n")) == 1
    assert len(mistakes("{}\n")) == 1


def test_a_missing_task_group(mistakes: Mistakes) -> None:
    (problem,) = mistakes(EXPERIMENT.replace("train:\n  model:\n    num_layers: 4\n", ""))
    assert problem.what == "this task group is missing"
    assert problem.where == "train"
    (one, two) = mistakes(EXPERIMENT.replace("type: train", "type: serve").replace("megatron", "vllm", 1))
    assert {one.what, two.what} == {"unknown key `train`", "this task group is missing"}


def test_v060_notices_are_returned(compose: Callable[..., tuple[DictConfig, SourceMap]]) -> None:
    from flagscale.config.load import load_experiment

    text = EXPERIMENT.replace("megatron.flagscale.train_gpt", "./flagscale/train/train_aquila.py")
    notices = load_experiment(*compose(text)).notices
    assert len(notices) == 1
    assert notices[0].startswith("config.yaml:7: experiment.task.entrypoint")


@pytest.mark.parametrize("action", registry.BUILT_IN["actions"])
def test_actions(action: str) -> None:
    assert load_action(OmegaConf.create({"action": action}), SourceMap()) == action


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({}, "no action given"),
        ({"action": None}, "no action given"),
        ({"action": "satrt"}, "unknown action `satrt`"),
        ({"action": ["run"]}, "unknown action"),
        ({"action": "${nowhere}"}, "nowhere"),
    ],
)
def test_a_missing_or_wrong_action(config: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        load_action(OmegaConf.create(config), SourceMap())


def test_command_keys() -> None:
    assert load_command_keys(OmegaConf.create({})) == CommandOptions()
    found = load_command_keys(
        OmegaConf.create({"output": "json", "follow": True, "chip": "H100", "picture": "a/b.svg"})
    )
    assert found == CommandOptions(as_json=True, follow=True, chip="H100", picture=Path("a/b.svg").absolute())
    planned = load_command_keys(OmegaConf.create({"plan": "auto", "task_file": "mine.yaml"}))
    assert planned == CommandOptions(plan=True, task_file=Path("mine.yaml").absolute())


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("output", "xml", "valid: text, json"),
        ("follow", "maybe", "true or false"),
        ("chip", 7, "the name of a chip"),
        ("chip", "", "the name of a chip"),
        ("picture", "estimate.png", "a file .svg"),
        ("picture", True, "a file .svg"),
        ("picture", ".svg", "a file .svg"),
        ("plan", "best", "the only value is auto"),
        ("plan", True, "the only value is auto"),
        ("task_file", "plan.yaml", "add plan=auto"),
        ("task_file", ["plan.yaml"], "a file .yaml"),
    ],
)
def test_a_wrong_value_of_a_command_key(key: str, value: object, says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        load_command_keys(OmegaConf.create({key: value}))


def test_all_wrong_command_keys_are_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "x.svg").mkdir()
    with pytest.raises(UserError) as raised:
        load_command_keys(OmegaConf.create({"output": "xml", "follow": 3, "picture": f"{tmp_path}/x.svg"}))
    assert len(raised.value.problems) == 3


def test_a_command_key_that_an_action_does_not_take_is_reported() -> None:
    config = OmegaConf.create({"follow": True, "output": "json", "chip": "H100"})
    assert ignored_keys(config, "query") == [
        "`chip` has no effect with action=query; it is for estimate, dryrun, check, auto_tune"
    ]
    assert len(ignored_keys(config, "run")) == 3
    assert ignored_keys(config, "action_of_a_package") == []


def test_the_run_directory_is_found_in_a_broken_configuration() -> None:
    broken = OmegaConf.create(
        {"experiment": {"exp_dir": "/x/${experiment.name}", "name": "y", "wrong": "${nowhere}"}}
    )
    assert load_run_location(broken) == RunLocation(Path("/x/y"), "ssh", None)
    broken.experiment.runner = {"type": "cloud", "node_rank": 2, "hostfile": "${nowhere}"}
    assert load_run_location(broken) == RunLocation(Path("/x/y"), "cloud", 2)


@pytest.mark.parametrize(
    "config", [{}, {"experiment": 4}, {"experiment": {"exp_dir": "???"}}, {"experiment": {"exp_dir": ""}}]
)
def test_a_missing_run_directory_is_a_mistake(config: dict[str, object]) -> None:
    with pytest.raises(UserError):
        load_run_location(OmegaConf.create(config))
