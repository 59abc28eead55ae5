"""The record of a run's job in Slurm, and the secrets that it keeps for the job's begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from flagscale.config.schema import Commands, Environment, Experiment, Runner, Task
from flagscale.errors import FlagScaleError
from flagscale.run.rundir import RunDir
from flagscale.runners.slurm import hidden, ledger
from flagscale.runners.slurm.ledger import Begin, Ledger


def job(number: str) -> Ledger:
    return Ledger("tiny", number, "ada", f"run-{number}", 1.0, f"run-{number}", is_ours=True)


def test_begins_are_kept_across_jobs(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    assert ledger.read(run_dir) is None
    ledger.record_job(run_dir, job("7"))
    ledger.record_begin(run_dir, Begin("7", 0, "run-7", ("n1",), 2.0))
    ledger.record_end(run_dir, "run-7", "time limit", "it came", 3.0)
    ledger.record_end(run_dir, "run-7", "failed", "too late", 4.0)
    ledger.record_begin(run_dir, Begin("7", 1, "run-7-r1", ("n2",), 5.0))
    ledger.record_job(run_dir, job("9"))
    ledger.record_begin(run_dir, Begin("9", 0, "run-9", ("n3",), 6.0))
    found = ledger.read(run_dir)
    assert found
    assert [(one.job_id, one.end, one.ended) for one in found.begins] == [
        ("7", "time limit", 3.0),
        ("7", "", None),
        ("9", "", None),
    ]
    assert [one.run_id for one in found.own_begins] == ["run-9"]
    assert found.step == "run-9"


def test_a_stop_is_recorded_for_the_job_that_it_means(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    ledger.record_job(run_dir, job("7"))
    assert ledger.request_stop(run_dir, "6").stop_requested is None
    assert ledger.request_stop(run_dir, "7").stop_requested
    assert ledger.exclude(run_dir, ("n2", "n1")).excluded == ("n2", "n1")
    assert ledger.exclude(run_dir, ("n1", "n3")).excluded == ("n2", "n1", "n3")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"begins": 3}'])
def test_a_damaged_record_is_named(tmp_path: Path, text: str) -> None:
    run_dir = RunDir(tmp_path)
    run_dir.slurm.write_text(text)
    with pytest.raises(FlagScaleError, match=r"slurm\.json cannot be read"):
        ledger.read(run_dir)


def experiment(envs: dict[str, str], arguments: dict[str, Any]) -> Experiment:
    return Experiment(
        name="x",
        exp_dir=Path("/runs"),
        task=Task(type="serve", backend="vllm"),
        runner=Runner(),
        envs=Environment(**envs),
        cmds=Commands(),
        arguments=arguments,
    )


def test_secrets_survive_what_the_recorded_configuration_masks(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    arguments = {"server": {"api_key": "${not} an interpolation"}, "port": 80}
    hidden.hide(run_dir, experiment({"HF_TOKEN": "007", "PLAIN": "1"}, arguments))
    assert run_dir.slurm_secrets.stat().st_mode & 0o777 == 0o600
    masked = {
        "experiment": {"envs": {"HF_TOKEN": "********", "PLAIN": "1"}},
        "serve": {"server": {"api_key": "********"}, "port": 80},
    }
    config = OmegaConf.create(masked)
    assert isinstance(config, DictConfig)
    hidden.restore(run_dir, config)
    assert config.experiment.envs == {"HF_TOKEN": "007", "PLAIN": "1"}
    assert config.serve.server.api_key == "${not} an interpolation"
    hidden.forget(run_dir)
    hidden.restore(run_dir, config)
    hidden.hide(run_dir, experiment({"PLAIN": "1"}, {}))
    assert not run_dir.slurm_secrets.exists()
