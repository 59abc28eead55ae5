"""The command line in this process: exit codes, messages, and actions that must not write files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from flagscale import __version__, cli
from flagscale.config.schema import Experiment
from flagscale.config.source_map import SourceMap
from flagscale.engines.base import Engine
from flagscale.node import commands
from flagscale.plan.prepare import Request
from flagscale.registry import BUILT_IN
from flagscale.run.rundir import RunDir
from flagscale.values import Host, Job, Role, Service
from flagscale_testing.packages import write_package
from tests.unit.plans import GOOD, FakeHosts, make_plan


@pytest.mark.parametrize(("action", "code"), [("stop", 0), ("query", 3), ("logs", 3)])
def test_an_unknown_runner_does_not_matter_if_nothing_was_started(
    action: str, code: int, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, f"action={action}", "+experiment.runner.type=clout"]) == code
    answer = capsys.readouterr().err
    assert "note: command line: experiment.runner.type: unknown runner `clout`" in answer
    assert "did you mean `cloud`?" in answer
    assert f"nothing was started in {tmp_path / 'out'}" in answer


def test_a_job_is_stopped_by_the_runner_that_started_it(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(tmp_path / "out", 1)
    RunDir(tmp_path / "out").write_launch(plan, {}, "", {})
    write_package(tmp_path, "gone", {"runners": {"gone": "gone:IT"}}, "import absent_vendor")
    write_package(tmp_path, "buggy", {"runners": {"buggy": "buggy:IT"}}, "1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    hosts = FakeHosts(monkeypatch, localhost={"stop": {"ok": True, "message": "ended 3 processes"}})
    for configured, trouble in (
        ("clout", "unknown runner"),
        ("gone", "No module named 'absent_vendor'"),
        ("buggy", "the runner `buggy` raises ZeroDivisionError"),
    ):
        assert cli.main([*words, "action=stop", f"+experiment.runner.type={configured}"]) == 0
        printed = capsys.readouterr()
        assert "host 0  localhost  ended 3 processes" in printed.out
        assert trouble in printed.err
    assert hosts.verbs("localhost") == ["stop"] * 3


def test_without_an_experiment_the_usage_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    assert "--config-path" in capsys.readouterr().out
    assert cli.main(["action=run"]) == 2
    assert "no experiment given" in capsys.readouterr().err


def test_dryrun_prints_everything_and_writes_nothing(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert "exec " in printed
    assert "--num-layers 2" in printed
    assert "PLAIN=1" in printed
    assert "do-not-tell" not in printed
    assert sorted(tmp_path.rglob("*")) == before


def test_an_action_that_is_not_in_a_file(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    file = Path("conf/config.yaml")
    file.write_text(
        "\n".join(line for line in file.read_text().splitlines() if not line.startswith("action"))
    )
    assert cli.main(words[:4]) == 2
    assert "no action given" in capsys.readouterr().err
    assert cli.main([*words[:4], "action=dryrun"]) == 0


def test_hydra_runs_several_at_once(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    own = "experiment.exp_dir=out/${train.model.num_layers}"
    assert cli.main([*words, "-m", "train.model.num_layers=2,4", own]) == 0
    printed = capsys.readouterr().out
    assert "--num-layers 2" in printed
    assert "--num-layers 4" in printed


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["action=dryrum"], "did you mean `dryrun`?"),
        (["+train.model.num_layer=3"], "num_layers"),
        (["train.model.hidden_size=33"], "multiple of 4"),
        (["experiment.task.backend=megatrn"], "did you mean `megatron`?"),
        (["experiment.task.entrypoint=megatron.flagscale.train_gtp"], "train_gpt"),
        (["experiment.task.entrypoint=absent.py"], "absent.py"),
        (["experiment.runner.platform=nvidja"], "nvidia"),
        (["+experiment.runner.type=clout"], "command line: experiment.runner.type: unknown runner `clout`"),
        (["+experiment.runner.type=clout"], "did you mean `cloud`?"),
        (["+experiment.runner.options.partition=a"], "experiment.runner.options.partition: unknown key"),
        (["+experiment.runner.node_rank=0"], "`node_rank` has no effect with type: ssh"),
        (["no_such_key=1"], "valid: action, chip, experiment"),
        (["actoin=run"], "did you mean `action`?"),
        (["trian.model.num_layers=3"], "did you mean `train`?"),
        (["hydra.verbos=1"], "hydra.verbos"),
        (["train.model.num_layers=[1"], "`[1` cannot be read as a value"),
        (["train.model.num_layers=2,4"], "add --multirun"),
        (["~train.model.num_layer"], "does not exist"),
        (["action=query", "+output=yaml"], "valid: text, json"),
        (["+experiment.envs={2: a}"], "experiment.envs.2: YAML reads this name as 2"),
        (["+experiment.runner.host_paths={1: {a: b}}"], "host_paths.1: YAML reads this name as 1"),
        (["train={true: 1}"], "train.True: YAML reads this name as True"),
        (["experiment.envs.1BAD=x"], "a name cannot begin with a digit: `1BAD`"),
        (["-m", "hydra.sweeper.max_batch_size=0"], "`max_batch_size` must be a whole number of at least 1"),
        (["hydra.searchpath=[pkg://os]"], "hydra.searchpath.0: there is no such package"),
        (["hydra.searchpath=[absent]"], "hydra.searchpath.0: there is no such folder"),
        (["train.model.save_interval=null"], "train.model.save_interval"),
    ],
)
def test_a_users_mistake_is_a_message_and_exit_code_2(
    words: list[str], more: list[str], expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, *more]) == 2
    reported = capfd.readouterr()
    assert expected in reported.err
    assert "Traceback" not in reported.err + reported.out


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_mistakes_of_both_levels_are_reported_together(
    plus: str, words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    mistakes = ["experiment.runner.hostfil=x", "experiment.runer.x=1", "train.model.num_layer=3"]
    assert cli.main([*words, *(plus + mistake for mistake in mistakes), "train.model.lr=fast"]) == 2
    reported = capfd.readouterr().err
    assert reported.startswith("4 mistakes")
    for name in ("hostfil`", "runer`", "num_layer`", "`lr`"):
        assert name in reported


def test_a_key_is_set_whether_or_not_a_file_has_it(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, "train.model.clip_grad=0.5", "experiment.envs.MORE=more", "output=json"]) == 0
    printed = capsys.readouterr().out
    assert "--clip-grad 0.5" in printed
    assert "MORE=more" in printed


def test_a_missing_file_is_a_users_mistake(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*words[:3], "confg"]) == 2
    assert "did you mean `config`?" in capfd.readouterr().err
    assert cli.main(["--config-path=cnf", *words[2:]]) == 2
    assert "- command line: --config-path: no such folder: cnf\n" in capfd.readouterr().err


@pytest.mark.parametrize(
    "more",
    [
        ["hydra.run.dir=x/y"],
        ["hydra.run.dir=/dev/null/x"],
        ["hydra={run: {dir: x}}"],
        ["hydra.run.dir=x", "hydra.job.chdir=true"],
        ["hydra.output_subdir=x", "hydra/job_logging=default"],
        ["-m", "hydra.sweep.dir=x", "experiment.exp_dir=a,b"],
        ["-m", "hydra.sweep.subdir=../../../../../../../..${hydra:runtime.cwd}/x", "experiment.exp_dir=a,b"],
        ["-m", "hydra.job.chdir=true", "experiment.exp_dir=a,b"],
    ],
)
def test_hydra_writes_nothing_whatever_its_own_keys_say(
    more: list[str], words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path().rglob("*"))
    assert cli.main([*words, *more]) == 0
    assert str(Path.cwd()) in capfd.readouterr().out
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nexperiment: [1\n", "conf/broken.yaml:3: "),
        ("experiment:\n  exp_name: 'x\n", "conf/broken.yaml:3: "),
        ("a: 1\na: 2\n", "conf/broken.yaml:2: "),
        ("experiment: {exp_name: '${nothing'}", "conf/broken.yaml:1: an interpolation cannot be read"),
        ("- a\n", "conf/broken.yaml:1: a file holds keys with values (`key: value`), not a list"),
        ("defaults: [_self_, {train: absent}]", "train/absent"),
    ],
)
def test_a_file_that_is_not_a_configuration_is_reported_with_its_line(
    text: str, expected: str, words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    Path("conf/broken.yaml").write_text(text)
    assert cli.main([*words[:3], "broken"]) == 2
    reported = capfd.readouterr().err
    assert reported.startswith("1 mistake")
    assert expected in reported
    assert "Traceback" not in reported


def test_a_bug_keeps_its_traceback(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(request: Request) -> int:
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr("flagscale.actions.dryrun", broken)
    assert cli.main(words) == 1
    reported = capfd.readouterr().err
    assert "Traceback" in reported
    assert "a bug of ours" in reported


def test_without_a_run_query_and_logs_return_3_and_stop_succeeds(
    words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert [cli.main([*words, f"action={name}"]) for name in ("query", "logs", "stop")] == [3, 3, 0]
    assert "nothing was started in" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("more", [[], ["follow=true"]])
def test_a_program_that_asks_for_a_job_that_was_never_started_gets_json(
    more: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, "action=query", "output=json", *more]) == 3
    assert json.loads(capsys.readouterr().out) == {"phase": "none", "reason": "nothing was started here"}


def test_a_plan_needs_no_devices_on_this_host(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    words += ["experiment.runner.platform=nvidia", "experiment.runner.nproc_per_node=8"]
    words += ["train.model.global_batch_size=8"]
    assert cli.main([*words, "action=dryrun"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("tiny: 8 ranks on 1 host")
    place = "command line: experiment.runner.nproc_per_node"
    says = "this host has 0 nvidia devices, the plan uses 8: a start on this host would be refused"
    assert printed.err == f"note: {place}: {says}\n"
    for action in ("run", "test", "check"):
        assert cli.main([*words, f"action={action}"]) == 2
        assert "nproc_per_node is 8, but this host has 0 nvidia devices" in capsys.readouterr().err
    assert cli.main([*words, "action=dryrun", "experiment.runner.nproc_per_node=auto"]) == 2
    assert "give experiment.runner.nproc_per_node or a hostfile" in capsys.readouterr().err
    Path("hosts").write_text("far slots=8\n")
    assert cli.main([*words, "action=dryrun", "experiment.runner.hostfile=hosts"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("entrypoint", "hint"),
    [
        ("my_pakage.train", ""),
        ("mine.trian", "did you mean `mine.train`?"),
        ("mine.absent.train", ""),
        ("mines", "did you mean `mines_own`?"),
        ("train_min.py", "did you mean `train_mine.py`?"),
        ("megatron.flagscale.train_gtp", "did you mean `megatron.flagscale.train_gpt`?"),
    ],
)
def test_a_program_that_nothing_can_find(
    entrypoint: str, hint: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("mine/__init__.py", "mine/train.py", "mines_own.py", "train_mine.py"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("")
    assert cli.main([*words, f"experiment.task.entrypoint={entrypoint}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("1 mistake")
    assert f"program not found: `{entrypoint}`" in error
    assert hint in error


@pytest.mark.parametrize(
    "more",
    [
        ["experiment.task.entrypoint=mine.train"],
        ["experiment.task.entrypoint=there.train", "experiment.envs.PYTHONPATH=elsewhere"],
        ["experiment.task.entrypoint=nowhere.train", "experiment.runner.python=/opt/other/python"],
        ["experiment.task.entrypoint=nowhere.train", "experiment.cmds.before_start='. activate'"],
        ["experiment.task.entrypoint=megatron.elsewhere.pretrain"],
    ],
)
def test_a_program_that_may_be_found_where_the_job_runs(more: list[str], words: list[str]) -> None:
    for name in ("mine/train.py", "elsewhere/there/train.py"):
        Path(name).parent.mkdir(parents=True)
        Path(name).write_text("")
    assert cli.main([*words, *more]) == 0


def test_query_logs_and_stop_need_only_the_run_directory(words: list[str]) -> None:
    assert cli.main([*words, "action=query", "+train.model.no_such_key=1"]) == 3


def test_a_value_for_a_task_group_is_a_mistake(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*words, "action=dryrun", "train=3"]) == 2
    reported = capfd.readouterr().err
    assert reported.startswith("1 mistake")
    assert "Traceback" not in reported


def test_the_version_is_that_of_flagscale(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capfd.readouterr().out == f"FlagScale {__version__}\n"


def test_a_reader_that_has_read_enough_is_no_error(words: list[str]) -> None:
    command = [sys.executable, "-c", "import sys; from flagscale.cli import main; sys.exit(main())", *words]
    command += ["action=dryrun", "+experiment.envs.LONG=" + "x" * 100_000]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline()
    process.stdout.close()
    assert process.stderr
    assert (process.stderr.read(), process.wait()) == ("", 0)


def test_a_task_type_of_another_engine_is_one_mistake(
    words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, "action=dryrun", "experiment.task.backend=vllm"]) == 2
    reported = capfd.readouterr().err
    assert reported.startswith("1 mistake")
    assert "the engine `vllm` does not support `train`" in reported


def test_meshes_without_keys_that_a_key_with_a_mistake_may_hold(
    words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    meshes = "train.system={enable_hetero: true, hetero_process_meshes: [{layers: [1]}, {layers: [1]}]}"
    assert cli.main([*words, "action=dryrun", meshes, "~train.model.micro_batch_size", "+train={1: a}"]) == 2
    reported = capfd.readouterr().err
    assert "train.1: YAML reads this name as 1" in reported
    assert "Traceback" not in reported


@pytest.mark.parametrize("type_", ["trian", "serve", "[a]"])
def test_a_wrong_task_type_does_not_hide_the_mistakes_of_the_task(
    type_: str, words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert (
        cli.main([*words, "action=dryrun", f"experiment.task.type={type_}", "train.model.num_layer=3"]) == 2
    )
    reported = capfd.readouterr().err
    assert reported.startswith("2 mistakes")
    assert "experiment.task.type: " in reported
    assert "train.model.num_layer: " in reported


def test_mistakes_of_the_runner_and_the_task_are_reported_together(
    words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    runner = [
        "+experiment.runner.type=cloud",
        "+experiment.runner.include=[a]",
        "+experiment.runner.nnodes=2",
    ]
    assert cli.main([*words, *runner, "train.model.no_such_key=3"]) == 2
    answer = capfd.readouterr().err
    assert answer.startswith("4 mistakes")
    for expected in ("`include` has no effect", "`node_rank` is required", "`master_addr` is", "no_such_key"):
        assert expected in answer


def test_on_a_cloud_platform_each_host_has_its_own_part(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    words += ["+experiment.runner.type=cloud", "train.model.global_batch_size=4"]
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    assert f"# {tmp_path}/out/cloud/host_1/logs/scripts/host_1_{os.uname().nodename}_run.sh" in printed
    assert "--rdzv-id tiny" in printed
    assert "host_0_" not in printed
    # The run of this host is found even if other keys are broken.
    assert cli.main([*words, "action=query", "+train.model.no_such_key=1"]) == 3
    assert f"nothing was started in {tmp_path}/out/cloud/host_1\n" in capsys.readouterr().err


def build_services(experiment: Experiment, hosts: tuple[Host, ...], source_map: SourceMap) -> Job:
    service = Service("one", ())
    role = Role("serve", "a.module", ())
    return Job("demo", "serve", "servers", "1", role, hosts, "one", {host.rank: (service,) for host in hosts})


SERVERS = Engine("servers", ("serve",), (), build_services, lambda group, arguments, source_map: [])


def test_services_on_several_hosts_need_a_command_that_starts_them_all(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(BUILT_IN["engines"], "servers", f"{__name__}:SERVERS")  # type: ignore[index]
    task = {"type": "serve", "backend": "servers", "entrypoint": "null"}
    words += [*(f"experiment.task.{key}={value}" for key, value in task.items()), "~train", "+serve={}"]
    words += ["+experiment.runner.type=cloud", "+experiment.runner.node_rank=1"]
    words += ["+experiment.runner.master_addr=10.0.0.1"]
    assert cli.main([*words, "+experiment.runner.nnodes=2"]) == 2
    assert "runner.type: `cloud` cannot start services on several hosts" in capsys.readouterr().err
    assert cli.main([*words, "+experiment.runner.nnodes=1", "experiment.runner.node_rank=0"]) == 0


def test_check_prints_every_result(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main([*words, "action=check"])
    reported = capsys.readouterr().out
    assert "megatron-core" in reported
    assert "GiB free" in reported
    assert code == (1 if "FAILED" in reported else 0)


def test_check_fails_on_a_missing_engine_and_a_port_in_use(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reply = {"engine": "", "writable": False, "ports": [20000], "taken": [29511]}
    monkeypatch.setitem(commands._OF_A_HOST, "probe", lambda question: {**GOOD, **reply})  # type: ignore[index]
    assert cli.main([*words, "action=check", "+experiment.runner.master_port=29511"]) == 1
    answer = capsys.readouterr().out
    for expected in ("is not installed", "not writable", "port 29511 is in use"):
        assert any(line.startswith("FAILED") and expected in line for line in answer.splitlines()), expected


def test_a_check_with_only_advice_is_not_a_failure(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reply = {"disk_free": 2**20, "time": 0.0, "engine": version("megatron-core")}
    monkeypatch.setitem(commands._OF_A_HOST, "probe", lambda question: {**GOOD, **reply})  # type: ignore[index]
    assert cli.main([*words, "action=check"]) == 0
    reported = capsys.readouterr().out
    for expected in ("only 0 GiB free", "its clock is "):
        assert any(line.startswith("warn") and expected in line for line in reported.splitlines()), expected


def test_an_unwritable_run_directory_is_reported_in_one_message(
    words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert cli.main([*words, "action=run", f"experiment.exp_dir={tmp_path}/file/out"]) == 1
    reported = capfd.readouterr().err
    assert "Traceback" not in reported
    assert "file/out" in reported


def test_relative_config_sources_do_not_change_the_directory(words: list[str]) -> None:
    here = os.getcwd()
    cli.main(words)
    assert os.getcwd() == here


@pytest.mark.parametrize(
    ("files", "more", "expected"),
    [
        (
            {"a": "defaults:\n- _self_\n- train: demp\n"},
            [],
            "conf/a.yaml:3: no such file: conf/train/demp.yaml",
        ),
        ({"a": "defaults:\n- _self_\n- train: demp\n"}, [], "did you mean `demo`?"),
        (
            {"a": "defaults: [bse]\n"},
            [],
            "conf/a.yaml:1: no such file: conf/bse.yaml\n    did you mean `base`?",
        ),
        (
            {"a": "defaults: [train: demo]\n"},
            ["train=demp"],
            "command line: train: no such file: conf/train/demp",
        ),
        (
            {"a": "defaults: [train: one]\n", "train/one": "x: 1\ndefaults:\n- tow"},
            [],
            "conf/train/one.yaml:3: no such file: conf/train/tow.yaml",
        ),
        ({"a": "defaults:\n- train: folder\n"}, [], "this cannot be read as a file: conf/train/folder.yaml"),
        (
            {
                "a": "defaults: [train: one]\n",
                "train/one": "defaults: [two]\nx: [1]\n",
                "train/two": "x: {a: 1}\n",
            },
            [],
            "conf/train/one.yaml: a list cannot be merged with a group of keys",
        ),
    ],
)
def test_a_file_that_is_named_but_cannot_be_merged(
    files: dict[str, str],
    more: list[str],
    expected: str,
    words: list[str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    Path("conf/train/folder.yaml").mkdir(parents=True)
    for name, text in {"base": "", "train/demo": "", **files}.items():
        Path(f"conf/{name}.yaml").write_text(text)
    assert cli.main([*words[:3], "a", "action=dryrun", *more]) == 2
    assert expected in capfd.readouterr().err


def test_where_the_run_is_not_written(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("conf/config.yaml").write_text("experiment:\n  exp_dir: [a]\n")
    assert cli.main([*words, "action=query"]) == 2
    assert "- conf/config.yaml:2: experiment.exp_dir: a path is required here" in capsys.readouterr().err
    Path("conf/config.yaml").write_text("experiment: text\n")
    assert cli.main([*words, "action=dryrun"]) == 2
    assert "- conf/config.yaml:1: experiment: a group of keys is expected here" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["dryrun", "query", "stop"])
@pytest.mark.parametrize("key", ["exp_dir", "runner.hostfile"])
def test_the_home_of_nobody(
    key: str, action: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code = cli.main([*words, f"action={action}", f"experiment.{key}='~no-such-user/x'"])
    reported = capsys.readouterr().err
    assert "Traceback" not in reported
    if key == "exp_dir" or action == "dryrun":
        assert code == 2
        assert f"command line: experiment.{key}: " in reported
