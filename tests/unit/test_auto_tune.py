"""`action=auto_tune` with trials that end at once: the loop, its records, and what can go wrong."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

from flagscale import registry
from flagscale.cli import main
from flagscale.run import tuner_dir
from flagscale.run.tuner_dir import TunerDir
from tests.unit import played_trials
from tests.unit.played_trials import ENDS, STARTED, STOPPED
from tests.unit.test_estimates import JOB

SPACE = (
    "use_recompute: [false], sequence_parallel: [false], use_distributed_optimizer: [true], "
    "context_parallel_size: [1], num_layers_per_virtual_pipeline_stage: [0]"
)
Tune = Callable[..., int]


@pytest.fixture(autouse=True)
def runner(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    known = {**registry.BUILT_IN["runners"], "played": f"{played_trials.__name__}:PLAYED"}
    monkeypatch.setitem(registry.BUILT_IN, "runners", known)
    yield
    for one in (STARTED, STOPPED, ENDS):
        one.clear()


@pytest.fixture
def command(words: list[str]) -> Tune:
    def command(action: str, *more: str) -> int:
        return main([*words, "experiment.runner.type=played", f"action={action}", *more])

    return command


@pytest.fixture
def tune(command: Tune) -> Tune:
    """Tune the small job of 2 ranks: dp2, tp2 and pp2, with micro-batches of 1 and (not dp2) of 2."""

    def tune(*more: str, algo: str = "grid") -> int:
        keys = (f"+experiment.auto_tuner.space={{{SPACE}}}", f"+experiment.auto_tuner.algo.name={algo}")
        return command("auto_tune", *keys, *more)

    return tune


@pytest.fixture
def files(words: list[str], tmp_path: Path) -> TunerDir:
    return TunerDir.of(tmp_path / "out")


def control(**keys: Any) -> str:
    listed = ", ".join(f"{name}: {value}" for name, value in keys.items())
    return f"+experiment.auto_tuner.control={{{listed}}}"


NO_RUN = control(run_best="false")


def test_all_are_tried_and_the_winner_runs(
    tune: Tune, files: TunerDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune() == 0
    printed = capsys.readouterr().out
    names = [name for name, _ in STARTED]
    assert names == ["task_1", "task_2", "task_3", "task_4", "task_5", "out"]
    best = min(files.entries(), key=lambda one: one["seconds"])
    assert best["seconds"] == pytest.approx(1.1)
    assert "best: trial" in printed
    winner = STARTED[-1][1]
    assert (winner["tensor_model_parallel_size"], winner["micro_batch_size"]) == (1, 1)
    assert (winner["train_iters"], winner["save_interval"], winner["save"] is None) == (1, 1, False)


def test_a_trial_is_short_and_saves_loads_and_evaluates_nothing(tune: Tune, files: TunerDir) -> None:
    more = ("+train.lr_warmup_iters=2", "train.model.train_iters=9", "+train.wandb_project=p")
    assert tune(*more, "+train.load=/x", NO_RUN) == 0
    values = STARTED[0][1]
    shown = {name: values[name] for name in ("train_iters", "log_interval", "save", "load", "eval_iters")}
    assert shown == {"train_iters": 5, "log_interval": 1, "save": None, "load": None, "eval_iters": 0}
    assert not values["lr_warmup_iters"]
    assert not values["wandb_project"]
    assert values["metrics_file"] == str(files.trial(1).metrics)
    assert values["mock_data"]


def test_the_records(tune: Tune, files: TunerDir, capsys: pytest.CaptureFixture[str]) -> None:
    ENDS[2, 1] = "CUDA out of memory"
    assert tune(NO_RUN) == 0
    rows = list(csv.reader(files.table.read_text().splitlines()))
    assert rows[0][:20] == [
        *("idx", "data_parallel_size", "tensor_model_parallel_size", "pipeline_model_parallel_size"),
        *("expert_model_parallel_size", "context_parallel_size", "use_distributed_optimizer"),
        *("sequence_parallel", "acc_step", "micro_batch_size", "num_layers_per_virtual_pipeline_stage"),
        *("use_recompute", "recompute_method", "recompute_granularity", "recompute_num_layers"),
        *("elapsed_time", "start_time", "max_mem", "performance", "error"),
    ]
    table = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    times = [float(row["performance"]) for row in table if row["performance"]]
    assert times == sorted(times)
    assert len(times) == 3
    assert table[-1]["max_mem"] == "OOM"
    assert "CUDA out of memory" in table[-1]["error"]
    assert (table[0]["data_parallel_size"], table[0]["acc_step"], table[0]["max_mem"]) == ("2", "1", "1024.0")
    ElementTree.fromstring(files.picture.read_text())
    assert "| " not in files.report.read_text()
    assert "report.svg" in files.report.read_text()
    out = capsys.readouterr().out
    assert "need at least as much memory" not in out
    assert f"--config-path {files.path} --config-name best action=run" in out
    assert "micro_batch_size: 1" in files.best.read_text()


def test_a_larger_trial_than_one_without_memory_is_not_tried(tune: Tune, files: TunerDir) -> None:
    ENDS[1, 2] = "CUDA out of memory"
    assert tune(NO_RUN, "train.model.global_batch_size=4") == 0
    pipelined = [one for one in files.entries() if one["changes"]["pipeline_model_parallel_size"] == 2]
    # The order of the space begins with the smallest.
    assert [one["changes"]["micro_batch_size"] for one in pipelined] == [1]


def test_a_failing_a_hanging_and_a_refused_trial_are_data(
    tune: Tune, files: TunerDir, capsys: pytest.CaptureFixture[str]
) -> None:
    ENDS[2, 1], ENDS[1, 2] = "an assertion", "hang"
    assert tune(control(run_best="false", max_time_per_task=0.1)) == 0
    states = {one["number"]: one["state"] for one in files.entries()}
    assert sorted(states.values()) == ["failed", "failed", "measured", "too slow", "too slow"]
    assert len(STOPPED) == 2
    assert set(STOPPED) == {f"task_{n}" for n, state in states.items() if state == "too slow"}
    assert "no iteration within" in capsys.readouterr().out


def test_nothing_measured_is_a_failure(tune: Tune, capsys: pytest.CaptureFixture[str]) -> None:
    ENDS.update(dict.fromkeys([(1, 1), (2, 1), (1, 2)], "no such tokenizer"))
    assert tune() == 1
    printed = capsys.readouterr()
    assert "3 trials have failed in the same way" in printed.out
    assert "no such tokenizer" in printed.out
    assert len(STARTED) == 3
    assert "error: no trial was measured" in printed.err


def test_it_continues_where_it_was_interrupted(
    tune: Tune, command: Tune, files: TunerDir, capsys: pytest.CaptureFixture[str]
) -> None:
    ENDS[2, 1] = "interrupt"
    assert tune(NO_RUN) == 130
    first = files.entries()
    assert "the same command continues" in capsys.readouterr().out
    assert command("query") == 1
    shown = capsys.readouterr().out
    assert "tuning was interrupted" in shown
    assert ", Ctrl-C" in shown
    ENDS.clear()
    before = len(STARTED)
    assert tune(NO_RUN) == 0
    entries = files.entries()
    assert entries[: len(first)] == first
    assert len(entries) == 5
    assert len({json.dumps(one["changes"]) for one in entries}) == 5
    assert len(STARTED) - before == 5 - len(first)
    assert "continues after" in capsys.readouterr().out
    assert command("query") == 0
    assert "tuning has ended" in capsys.readouterr().out
    assert command("logs") == 3
    assert f"use experiment.exp_dir={files.path}/task_N" in capsys.readouterr().err
    before = len(STARTED)
    assert tune(NO_RUN) == 0
    assert len(STARTED) == before, "nothing is tried again"
    assert f"no further trial is needed; to begin again, delete {files.history}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "differs"),
    [("versions", "versions"), ("hosts", "hosts"), ("arguments", "arguments"), (None, "form")],
)
def test_trials_under_other_conditions_are_kept_but_not_used(
    tune: Tune, files: TunerDir, capsys: pytest.CaptureFixture[str], change: str | None, differs: str
) -> None:
    assert tune(NO_RUN, control(max_trials=1, run_best="false").replace("+", "")) == 0
    (entry,) = files.entries()
    old = {**entry, change: "others"} if change else {"odd": 1}
    files.history.write_text(f"{json.dumps(old)}\n{json.dumps(entry)}")  # the last line has no end
    capsys.readouterr()
    assert tune(NO_RUN) == 0
    assert files.entries()[:2] == [old, entry]
    assert len(files.entries()) == 6
    assert f"1 trial of the history has other {differs}: kept, but not used" in capsys.readouterr().out


def test_a_line_that_was_cut_off_loses_nothing_else(tune: Tune, files: TunerDir) -> None:
    assert tune(control(max_trials=1, run_best="false")) == 0
    whole = files.history.read_text()
    files.history.write_text(whole + whole[:40])
    assert tune(NO_RUN) == 0
    assert len(files.entries()) == 5


def test_limits_and_the_grid(tune: Tune, files: TunerDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(control(max_trials=2, run_best="false")) == 0
    assert "`max_trials` trials have run" in capsys.readouterr().out
    assert tune(control(max_time=0.000001, run_best="false")) == 0
    assert "`max_time` has passed" in capsys.readouterr().out
    assert len(files.entries()) == 2
    assert tune(NO_RUN, "+experiment.auto_tuner.algo.priority=memory") == 0
    assert len(files.entries()) == 5


def test_figures_of_a_chip_make_estimates_times(
    tune: Tune, files: TunerDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    links = {"intra_node": {"gb_s": 100, "world": 8}}
    chip = {"fp32_tflops_dense": 0.00003, "memory_gb": 9, "hbm_gb_s": 10, **links}
    (tmp_path / "chips.json").write_text(json.dumps({"core": chip}))
    own = (f"+experiment.chips={tmp_path}/chips.json", "+chip=core")
    assert tune(NO_RUN, *own, algo="estimate") == 0
    printed = capsys.readouterr().out
    assert "; expected " in printed.partition("trial 1:")[2].splitlines()[0]
    assert files.entries()[0]["estimate"]["seconds"] > 0


def test_candidates_that_cannot_fit_are_not_tried(
    tune: Tune, files: TunerDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(NO_RUN, "+experiment.auto_tuner.memory_model.gpu_memory=0.001") == 1
    assert "no other candidate fits into the memory of a device" in capsys.readouterr().err
    assert STARTED == []


def test_only_one_tuner_per_run_directory(
    tune: Tune, files: TunerDir, capsys: pytest.CaptureFixture[str]
) -> None:
    with files.held():
        assert files.is_held()
        assert tune() == 1
    assert not files.is_held()
    assert "another tuner is running" in capsys.readouterr().err
    assert STARTED == []


def test_a_tuner_and_a_job_do_not_share_the_devices(
    tune: Tune, command: Tune, files: TunerDir, capsys: pytest.CaptureFixture[str]
) -> None:
    with files.held():
        assert command("run") == 1
    assert "a tuner is running in" in capsys.readouterr().err
    assert STARTED == []


def test_query_shows_what_a_tuner_does(
    command: Tune, files: TunerDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("query") == 3
    best = {"number": 1, "seconds": 0.25, "label": "dp2"}
    trial = {"number": 2, "label": "tp2", "started": 0.0}
    state = {"phase": "tuning", "candidates": 7, "trials": 1, "tried": 1, "trial": trial, "best": best}
    with files.held():
        files.write_state(state)
        assert command("query") == 0
        assert command("query", "+output=json") == 0
    printed = capsys.readouterr().out
    assert "tuning: tried 1 of 7 candidates in 1 trial" in printed
    assert "best: trial 1, 250 ms per step: dp2" in printed
    assert json.loads(printed.splitlines()[-1])["trial"]["number"] == 2


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["+experiment.auto_tuner.performance={order: desc}"], "would choose the slowest; use `asc`"),
        (["+experiment.auto_tuner.performance={name: tokens_per_s, order: asc}"], "use `desc`"),
        (["+experiment.auto_tuner.performance={name: loss}"], "trials report iteration_ms, tokens_per_s"),
        (["+experiment.auto_tuner.algo={name: random}"], "experiment.auto_tuner.algo.name"),
        (["+experiment.auto_tuner.algo={priority: memory}"], "has an effect with `name: grid` only"),
        ([control(max_time=-1)], "experiment.auto_tuner.control.max_time"),
        ([control(train_iters=1)], "experiment.auto_tuner.control.train_iters"),
        ([control(max_tme=1)], "did you mean `max_time`?"),
        (["+experiment.auto_tuner.platform={airs_switch: true}"], "nothing is reported to a platform"),
        (["+experiment.auto_tuner.space={tensor_parallel: [1]}"], "cannot be tuned"),
        (["+experiment.auto_tuner.space={log_interval: [1, 9]}"], "`log_interval` cannot be tuned: every"),
        (["+experiment.auto_tuner.space={train_iters: [1, 9]}"], "`train_iters` cannot be tuned: every"),
        (["+experiment.auto_tuner.space={swiglu: [true]}"], "changes the training, not only its speed"),
        (["+experiment.auto_tuner.space={1: [2]}"], "YAML reads this name as 1"),
        (["+experiment.envs.A=${nowhere}"], "experiment.envs.A"),
        (["+train.enable_hetero=true", "+train.hetero_process_meshes=[1,1,1,1,1,1,1,1,1,1]"], "meshes"),
        (["train.model.hidden_size=33"], "hidden_size 33 must be a multiple of 4"),
    ],
)
def test_mistakes_are_reported_before_any_trial(
    command: Tune, capsys: pytest.CaptureFixture[str], overrides: list[str], says: str
) -> None:
    assert command("auto_tune", *overrides) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "Traceback" not in error
    assert STARTED == []


def test_an_illegal_layout_is_no_mistake_beside_others(
    command: Tune, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("auto_tune", "+train.tensor_model_parallel_size=64", control(max_tme=1)) == 2
    error = capsys.readouterr().err
    assert "1 mistake in the configuration" in error
    assert "did you mean `max_time`?" in error


def test_an_unknown_chip_is_refused_where_it_is_of_no_use_too(
    command: Tune, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.py").write_text("print('trains')\n")
    own = f"+experiment.task.entrypoint={tmp_path}/own.py"
    assert command("auto_tune", own, NO_RUN, "+chip=H10") == 2
    assert "H10" in capsys.readouterr().err
    assert STARTED == []


def test_a_job_is_not_started_with_masks_for_secrets(
    tune: Tune, files: TunerDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(NO_RUN, "+experiment.envs.HF_TOKEN=hf_1") == 0
    before = len(STARTED)
    words = ["--config-path", str(files.path), "--config-name", "best"]
    assert main([*words, "action=dryrun"]) == 0
    assert main([*words, "action=run"]) == 2
    error = capsys.readouterr().err
    assert "masks the values of secrets" in error
    assert "'train.wandb_api_key=${oc.env:WANDB_API_KEY}'" in error
    assert len(STARTED) == before
    given = ("experiment.envs.HF_TOKEN=hf_1", "experiment.envs.SERVICE_TOKEN=x", "train.wandb_api_key=x")
    assert main([*words, "action=run", *given]) == 0


def test_keys_of_v060(tune: Tune, capsys: pytest.CaptureFixture[str]) -> None:
    old = (
        "+experiment.auto_tuner.control={interval: 10, max_time_per_task: 300, run_best: false}",
        "+experiment.auto_tuner.platform={airs_switch: false}",
        r"+experiment.auto_tuner.performance={name: 'elapsed time per iteration \\(ms\\):', order: ascend}",
        "+experiment.auto_tuner.memory_model={model_name: default, gpu_memory: 60000}",
    )
    assert tune(*old) == 0
    assert "trials are watched twice per second" in capsys.readouterr().err


def test_a_job_that_is_no_training_cannot_be_tuned(
    command: Tune, tmp_path: Path, capsys: pytest.CaptureFixture[str], write_model: Callable[..., Path]
) -> None:
    write_model(tmp_path / "model")
    Path("conf/config.yaml").write_text(
        f"""
experiment:
  exp_name: serving
  exp_dir: {tmp_path}/out
  task: {{type: serve, backend: vllm}}
  runner: {{platform: cpu, nproc_per_node: 1}}
action: run
serve: {{model: {tmp_path}/model}}
"""
    )
    assert command("auto_tune") == 2
    assert "only trainings can be tuned" in capsys.readouterr().err


def test_the_layout_of_the_configuration_itself_need_not_be_legal(tune: Tune, files: TunerDir) -> None:
    illegal = ("train.model.micro_batch_size=64", "+train.tensor_model_parallel_size=64")
    assert tune(NO_RUN, *illegal) == 0
    assert len(files.entries()) == 5
    assert "tensor_model_parallel_size: 1" in files.best.read_text()


def test_a_layout_outside_of_the_space_does_not_win(
    tune: Tune, files: TunerDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(NO_RUN) == 0
    capsys.readouterr()
    assert tune(NO_RUN, "+experiment.auto_tuner.space.tensor_model_parallel_size=[2]") == 0
    printed = capsys.readouterr().out
    assert "3 trials of the history have other layouts: kept, but not used" in printed
    assert "tp2" in printed.partition("best: trial")[2].splitlines()[0]


def test_a_stop_after_the_last_trial_keeps_the_winner_from_starting(
    tune: Tune, files: TunerDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    append = TunerDir.append

    def append_and_stop(self: TunerDir, entry: Any) -> None:
        append(self, entry)
        if len(self.entries()) == 5:
            self.stop_request.touch()

    monkeypatch.setattr(TunerDir, "append", append_and_stop)
    assert tune() == 1
    assert "stopped by action=stop" in capsys.readouterr().err
    assert [name for name, _ in STARTED] == [f"task_{number}" for number in range(1, 6)]


def test_a_full_disk_ends_the_tuner_with_a_message_and_loses_nothing(
    tune: Tune, files: TunerDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write, room = os.write, 100

    def write_some(file: int, data: bytes) -> int:
        is_history = Path(f"/proc/self/fd/{file}").resolve() == files.history
        return write(file, data[:room] if is_history and os.fstat(file).st_size else data)

    with monkeypatch.context() as full:
        full.setattr(tuner_dir, "os", SimpleNamespace(**{**vars(os), "write": write_some}))
        assert tune(NO_RUN) == 1
    assert capsys.readouterr().err == f"error: cannot write to {files.path}: No space left on device\n"
    assert len(files.entries()) == 1
    assert tune(NO_RUN) == 0
    assert len(files.entries()) == 5


def test_what_a_trial_does_not_use_may_change_between_commands(tune: Tune, files: TunerDir) -> None:
    assert tune(control(max_trials=1, run_best="false")) == 0
    assert tune(control(max_trials=1, run_best="false"), "train.model.train_iters=9") == 0
    assert len(files.entries()) == 1
    assert tune(control(max_trials=1, run_best="false"), "experiment.envs.PLAIN=2") == 0
    assert len(files.entries()) == 2


def test_hosts_that_each_run_a_command_are_not_tuned(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("NNODES", "2"), ("NODE_RANK", "0"), ("MASTER_ADDR", "10.0.0.1")):
        monkeypatch.setenv(name, value)
    more = ("experiment.runner.type=cloud", "train.model.global_batch_size=4", "action=auto_tune")
    assert main([*words, *more]) == 2
    assert "their tuners would not agree on the trials" in capsys.readouterr().err


@pytest.mark.parametrize("run_best", ["true", "false"])
def test_hosts_of_several_types_get_meshes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], run_best: str
) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "job.yaml").write_text(JOB)
    (tmp_path / "hosts").write_text("slow slots=2 type=V100\nfast slots=2 type=H100\n")
    (tmp_path / "chips.yaml").write_text("V100: V100-32\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    words = [
        *("--config-path", "conf", "--config-name", "job", "action=auto_tune"),
        *("experiment.runner.hostfile=hosts", "+experiment.runner.type=played"),
        *("experiment.chips=chips.yaml", "experiment.runner.nproc_per_node=null"),
        *("train.system.bf16=null", "+train.fp16=true", f"experiment.exp_dir={tmp_path}/out"),
        control(run_best=run_best),
    ]
    assert main(words) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "considered:" in printed
    files = TunerDir.of(tmp_path / "out")
    assert "model" in files.task_file.read_text()
    assert len(STARTED) == (1 if run_best == "true" else 0)
