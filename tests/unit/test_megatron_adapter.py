"""A Megatron job from an experiment: argv and run-directory defaults (its rules: test_rules.py)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flagscale.config.schema import Task
from flagscale.config.source_map import SourceMap
from flagscale.engines.megatron.adapter import MEGATRON
from flagscale.run.checkpoints import TRACKER, write_arguments
from flagscale.values import Job
from tests.unit.conftest import TASK

Build = Callable[..., Job]
Refused = Callable[..., list[str]]


def value(job: Job, option: str) -> str:
    return job.role.argv[job.role.argv.index(option) + 1]


def test_the_job(build: Build, tmp_path: Path) -> None:
    job = build({"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2}, ranks=4)
    assert (job.name, job.engine, job.task_type, job.world_size) == ("demo", "megatron", "train", 4)
    assert job.layout == "tp2 x pp2"
    assert job.role.entrypoint == "megatron.flagscale.train_gpt"
    assert value(job, "--save") == value(job, "--load") == str(tmp_path / "run" / "checkpoints")
    assert value(job, "--tensorboard-dir") == str(tmp_path / "run" / "tensorboard")
    assert value(job, "--metrics-file") == str(tmp_path / "run" / "metrics.jsonl")
    assert "--wandb-save-dir" not in job.role.argv
    assert job.notices == ()


def test_folders_that_the_user_names_or_leaves_out(build: Build, tmp_path: Path) -> None:
    job = build({"checkpoint": {"save": "/elsewhere", "load": None}, "wandb_project": "p"})
    assert value(job, "--save") == "/elsewhere"
    assert "--load" not in job.role.argv
    assert value(job, "--wandb-save-dir") == str(tmp_path / "run")  # W&B makes a folder `wandb` in it
    assert value(job, "--wandb-exp-name") == job.name
    assert value(build({"save": "/elsewhere"}), "--load") == "/elsewhere"
    assert "--save" not in build({"save": None, "save_interval": None}).role.argv


def test_a_section_named_like_an_argument(build: Build) -> None:
    job = build({"optimizer": {"weight_decay": 0.5, "adam_beta1": 0.8}})
    assert value(job, "--weight-decay") == "0.5"
    assert "--optimizer" not in job.role.argv
    assert value(build({"optimizer": "sgd"}), "--optimizer") == "sgd"


def test_a_stop_leaves_time_to_save_if_the_job_saves(build: Build) -> None:
    assert build().role.stop_grace == 10
    assert build({"exit_signal_handler": True}).role.stop_grace == 120
    assert build({"exit_signal_handler": True}, stop_grace=7).role.stop_grace == 7
    assert build({"exit_signal_handler": True, "save": None, "save_interval": None}).role.stop_grace == 10


def test_secrets_leave_argv(build: Build) -> None:
    job = build({"wandb_api_key": "sk-123", "wandb_project": "p"})
    assert job.secrets == {"WANDB_API_KEY": "sk-123"}
    assert not any("sk-123" in word for word in job.role.argv)


def test_mistakes_of_names_and_values_are_reported_together_with_broken_rules(refused: Refused) -> None:
    found = refused(
        {
            "num_layer": 1,
            "lr": "fast",
            "device_type": "x",
            "a": {"seed": 1},
            "b": {"seed": 2},
            "hidden_size": 65,
        }
    )
    assert len(found) == 5
    assert "train.hidden_size: hidden_size 65 must be a multiple of 4 (4 attention heads)" in found


def test_the_task_group_can_be_checked_without_hosts() -> None:
    arguments = {**TASK, "a": {"num_layer": 1}, "lr": "fast", "device_type": "x", "hidden_size": 65}
    found = MEGATRON.check(Task(backend="megatron"), arguments, SourceMap())
    expected = {"train.a.num_layer", "train.lr", "train.device_type", "train.hidden_size"}
    assert {problem.where for problem in found} == expected
    assert MEGATRON.check(Task(backend="megatron"), TASK, SourceMap()) == []


def test_a_layout_that_fits_some_number_of_ranks_is_not_blamed_without_hosts() -> None:
    keys = {"tensor_model_parallel_size": 4, "global_batch_size": 12, "micro_batch_size": 1}
    assert MEGATRON.check(Task(backend="megatron"), {**TASK, **keys}, SourceMap()) == []
    keys |= {"pipeline_model_parallel_size": 3}
    (problem,) = MEGATRON.check(Task(backend="megatron"), {**TASK, **keys}, SourceMap())
    assert problem.what.startswith("num_layers 4 must be a multiple of 3")


@pytest.mark.parametrize("name", TASK)
def test_a_wrong_value_is_not_reported_again_by_the_rules(refused: Refused, name: str) -> None:
    """Nor does it hide another mistake."""
    (message,) = refused({name: [[1]]})
    assert message.startswith(f"train.{name}: `{name}` ")
    other = "fp16_lm_cross_entropy"
    found = refused({name: [[1]], other: True})
    assert len(found) == 2
    assert any(f"`{other}` needs `fp16: true`" in text for text in found)


def test_a_missing_argument_is_blamed_on_the_group(refused: Refused) -> None:
    (message,) = refused({"lr": None})
    assert message == "train.lr: `lr` is required: the learning rate"


def test_another_program_may_support_more_than_ours(build: Build) -> None:
    assert "--sft" in build({"sft": True}, entrypoint="mine.py").role.argv


REFINED = {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 1}


def test_recompute_can_differ_between_stages_and_micro_batches(build: Build, refused: Refused) -> None:
    name = "recompute_granularity_per_stage_micro_batch"
    layout = {**REFINED, "pipeline_model_parallel_size": 2, "global_batch_size": 4, "num_layers": 4}
    layout["micro_batch_size"] = 1
    job = build({**layout, name: [[1, 3, 0, 1, 1], [1, 4, 1]]}, ranks=2)
    assert value(job, "--recompute-granularity-per-stage-micro-batch") == "[[1,3,0,1,1],[1,4,1]]"
    wrong = refused({**layout, name: [[1, 3, 0], [2, 4, 2]]}, ranks=2)
    assert len(wrong) >= 2
    (message,) = refused({**REFINED, "recompute_num_layers": 0})
    assert "at least 1" in message


def test_the_portable_layers_support_every_parallelism_on_cpu(build: Build) -> None:
    layout = {"tensor_model_parallel_size": 2, "sequence_parallel": True, "context_parallel_size": 2}
    assert build(layout, ranks=4, platform="cpu").layout == "tp2 x cp2"


def test_experts_are_split_on_cpu_as_elsewhere(build: Build) -> None:
    experts = {
        "num_experts": 4,
        "moe_ffn_hidden_size": 64,
        "disable_bias_linear": True,
        "moe_grouped_gemm": True,
        "expert_model_parallel_size": 2,
        "tensor_model_parallel_size": 2,
        "sequence_parallel": True,
    }
    assert build(experts, ranks=4, platform="cpu").world_size == 4
    assert build({**experts, "expert_tensor_parallel_size": 1}, ranks=2, platform="cpu").world_size == 2


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"sequence_parallel": True},
            "train.sequence_parallel: has no effect with tensor_model_parallel_size 1",
        ),
        ({"num_experts": 2, "add_bias_linear": False}, "train.num_experts: moe_ffn_hidden_size is not given"),
        (
            {"tokenizer_model": "./nowhere"},
            "train.tokenizer_model: has no effect with `tokenizer_type: NullTokenizer`",
        ),
    ],
)
def test_a_change_by_the_engine_is_a_notice(build: Build, changes: dict[str, Any], says: str) -> None:
    (notice,) = build(changes).notices
    assert says in notice


def test_data_without_a_split_is_a_notice(
    build: Build, write_data: Callable[..., str], tmp_path: Path
) -> None:
    prefix = write_data(tmp_path / "text", (100,) * 1000)
    (notice,) = build({"mock_data": None, "data_path": prefix}).notices
    assert "`split` is not given" in notice


def test_a_resume_is_compared_with_the_checkpoint_that_this_host_sees(
    build: Build, refused: Refused, tmp_path: Path
) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    stored = {**TASK, "weight_decay_incr_style": "constant", "lr_decay_style": "linear", "seed": 1}
    write_arguments(checkpoints / "iter_0000005", stored)
    assert build().notices == ()  # no tracker file: nothing to resume from
    (checkpoints / TRACKER).write_text("5")
    (notice,) = build().notices
    assert notice.startswith("train.seed: `seed` is 1234, but the checkpoint")
    (problem,) = refused({"num_layers": 8})
    assert f"the checkpoint {checkpoints / 'iter_0000005'} was trained with 4" in problem
    assert build({"num_layers": 8, "load": None}).notices == ()
    (problem,) = refused({"global_batch_size": None}, ranks=4)  # the engine's default: 2 per rank
    assert "`global_batch_size` is 8, but the checkpoint" in problem
    write_arguments(checkpoints / "iter_0000003", {**stored, "num_layers": 8, "seed": 1234})
    assert build({"num_layers": 8, "ckpt_step": 3}).notices == ()


def test_weights_to_start_from_are_compared_in_their_shape_only(
    build: Build, refused: Refused, tmp_path: Path
) -> None:
    weights = tmp_path / "weights"
    (problem,) = refused({"pretrained_checkpoint": str(weights)})
    what = "no such folder; give a model folder in Hugging Face's format or a folder of checkpoints"
    assert problem == f"train.pretrained_checkpoint: {weights}: {what}"
    weights.mkdir()
    (problem,) = refused({"pretrained_checkpoint": str(weights)})
    assert "no latest_checkpointed_iteration.txt in this folder: not a folder of checkpoints" in problem
    (weights / TRACKER).write_text("5")
    write_arguments(weights / "iter_0000005", {**TASK, "lr": 5.0, "seed": 1})
    assert build({"pretrained_checkpoint": str(weights)}).notices == ()
    (problem,) = refused({"pretrained_checkpoint": str(weights), "num_layers": 8})
    assert "was trained with 4: its weights do not fit; use 4, or load other weights" in problem


def test_a_new_training_with_the_state_of_the_optimizer(
    build: Build, refused: Refused, tmp_path: Path
) -> None:
    """It begins again, so that schedule and data may differ; with weights of its own run it continues."""
    old, own = tmp_path / "old", tmp_path / "run" / "checkpoints"
    start = {"finetune_with_optim": True, "load": str(old)}
    assert refused(start) == [f"train.load: `finetune_with_optim` needs a checkpoint: {old}: no such folder"]
    old.mkdir()
    (old / TRACKER).write_text("5")
    write_arguments(
        old / "iter_0000005", {**TASK, "lr": 5.0, "seed": 1, "rotary_base": 5, "optimizer": "adam"}
    )
    assert build(start).notices == ()
    (problem,) = refused({**start, "optimizer": "sgd"})
    assert problem.endswith('use "adam", or set `finetune: true` to start without the optimizer\'s state')
    pretrained = {"finetune_with_optim": True, "pretrained_checkpoint": str(old)}
    assert build(pretrained, max_restarts=1).notices == ()
    for name in ("finetune_with_optim", "finetune"):
        (notice,) = build({name: True, "load": str(old)}, max_restarts=1).notices
        assert notice.startswith(f"train.{name}: every restart (experiment.runner.max_restarts) begins again")
    own.mkdir(parents=True)
    (own / TRACKER).write_text("7")
    write_arguments(own / "iter_0000007", {**TASK, "seed": 1})
    (notice,) = build(pretrained).notices
    assert "`seed` is 1234, but the checkpoint" in notice


def test_hostile_values_reach_argv_verbatim(build: Build) -> None:
    from tests.unit.conftest import HOSTILE

    for text in HOSTILE:
        argv = build({"wandb_exp_name": text, "wandb_project": "p"}).role.argv
        assert (
            f"--wandb-exp-name={text}" in argv
            or value(build({"wandb_exp_name": text}), "--wandb-exp-name") == text
        )


def test_arguments_of_torchrun_that_this_chip_or_installation_cannot_serve(
    build: Build, refused: Refused
) -> None:
    keys: dict[str, Any] = {"numa_binding": "node", "virtual_local_rank": True}
    assert build(**keys).world_size == 1
    found = refused(platform="cpu", **keys, logs_specs="defualt")
    assert found == [
        "experiment.runner.numa_binding: `numa_binding` needs CUDA, which `cpu` does not have",
        "experiment.runner.virtual_local_rank: `virtual_local_rank` needs CUDA, which `cpu` does not have",
        "experiment.runner.logs_specs: no installed package has the entry point `defualt` in "
        "`torchrun.logs_specs`",
    ]


def test_a_job_holds_every_argument_with_the_defaults_of_its_workers(build: Callable[..., Job]) -> None:
    on_chip, on_host = build().arguments, build(platform="cpu").arguments
    assert (on_chip["num_layers"], on_chip["rotary_base"]) == (4, 10000)
    assert (on_chip["transformer_impl"], on_host["transformer_impl"]) == ("transformer_engine", "torch")
    own = build({"transformer_impl": "local", "disable_bias_linear": True}, platform="cpu").arguments
    assert own["transformer_impl"] == "local"


@pytest.mark.parametrize("part", ["forward_step=step", "model_config=mine"])
def test_the_arguments_do_not_tell_the_model_of_a_program_with_its_own(
    build: Callable[..., Job], tmp_path: Path, part: str
) -> None:
    frame = "from megatron.flagscale.program import run\n"
    (tmp_path / "mine.py").write_text(f"{frame}run({part})")
    (tmp_path / "rows.py").write_text(f"{frame}run(datasets=rows)")
    mine, rows = (build(entrypoint=str(tmp_path / name)) for name in ("mine.py", "rows.py"))
    assert (mine.has_own_model, rows.has_own_model) == (True, False)
    assert mine.arguments["num_layers"] == rows.arguments["num_layers"] == 4
