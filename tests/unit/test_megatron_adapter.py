"""An experiment to a Megatron job: argv, run-directory defaults, and every rule between arguments."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flagscale.config.source_map import SourceMap
from flagscale.engines.megatron.adapter import MEGATRON
from flagscale.values import Job

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


def test_a_stop_leaves_time_to_save_where_the_job_saves(build: Build) -> None:
    assert build().role.stop_grace == 10
    assert build({"exit_signal_handler": True}).role.stop_grace == 120
    assert build({"exit_signal_handler": True}, stop_grace=7).role.stop_grace == 7
    assert build({"exit_signal_handler": True, "save": None, "save_interval": None}).role.stop_grace == 10


def test_secrets_leave_argv(build: Build) -> None:
    job = build({"wandb_api_key": "sk-123", "wandb_project": "p"})
    assert job.secrets == {"WANDB_API_KEY": "sk-123"}
    assert not any("sk-123" in word for word in job.role.argv)


def test_mistakes_of_names_and_values_are_told_together_and_before_the_rules(refused: Refused) -> None:
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
    assert len(found) == 4
    assert not any("hidden_size" in text for text in found)


def test_names_and_values_can_be_checked_alone() -> None:
    arguments = {"a": {"num_layer": 1, "lr": "fast"}, "device_type": "x", "hidden_size": 65}
    found = MEGATRON.check("train", arguments, SourceMap())
    assert {problem.where for problem in found} == {"train.a.num_layer", "train.a.lr", "train.device_type"}
    assert MEGATRON.check("train", {}, SourceMap()) == []


def test_what_is_left_out_is_blamed_on_the_group(refused: Refused) -> None:
    (message,) = refused({"lr": None})
    assert message == "train.lr: `lr` is required: the learning rate"


RULES: list[tuple[dict[str, Any], str]] = [
    *(
        ({name: None}, f"train.{name}: `{name}` is required")
        for name in (
            "num_layers",
            "hidden_size",
            "num_attention_heads",
            "seq_length",
            "max_position_embeddings",
            "lr",
        )
    ),
    ({"tokenizer_type": None}, "train.tokenizer_type: `tokenizer_type` is required"),
    ({"train_iters": None}, "`train_iters` or `train_samples` is required"),
    ({"train_samples": 100}, "give `train_iters` or `train_samples`, not both"),
    ({"lr_warmup_samples": 10}, "use `lr_warmup_iters`, not `lr_warmup_samples`"),
    ({"lr_decay_samples": 10}, "use `lr_decay_iters`, not `lr_decay_samples`"),
    ({"train_iters": None, "train_samples": 64, "lr_warmup_iters": 1}, "use `lr_warmup_samples`"),
    ({"eval_interval": 0}, "`eval_interval` is at least 1, not 0"),
    ({"save_interval": 0}, "`save_interval` is at least 1, not 0"),
    ({"log_interval": 0}, "`log_interval` is at least 1, not 0"),
    ({"train_iters": -1}, "`train_iters` is at least 1, not -1"),
    ({"seq_length": 128}, "seq_length 128 is larger than max_position_embeddings 64"),
    (
        {"lr_warmup_fraction": 0.1, "lr_warmup_iters": 1},
        "give `lr_warmup_fraction` or `lr_warmup_iters`, not both",
    ),
    ({"lr_warmup_fraction": 1.0}, "at least 0 and less than 1, not 1.0"),
    ({"lr_warmup_iters": 10}, "the warm-up (10 iters) must be shorter than the schedule (10)"),
    (
        {"lr_warmup_iters": 5, "lr_decay_iters": 5},
        "the warm-up (5 iters) must be shorter than the schedule (5)",
    ),
    ({"min_lr": 0.1}, "min_lr 0.1 is larger than lr 0.001"),
    ({"lr_warmup_init": 0.1}, "lr_warmup_init 0.1 is larger than lr 0.001"),
    ({"lr_decay_style": "WSD"}, "lr_decay_style WSD needs `lr_wsd_decay_iters`"),
    (
        {"start_weight_decay": 0.1},
        "`start_weight_decay` is read with weight_decay_incr_style: linear or cosine only",
    ),
    (
        {"weight_decay_incr_style": "cosine", "start_weight_decay": 0.1},
        "weight_decay_incr_style cosine needs `end_weight_decay`",
    ),
    ({"override_opt_param_scheduler": True, "use_checkpoint_opt_param_scheduler": True}, "not both"),
    ({"num_query_groups": 2}, "`num_query_groups` is read with `group_query_attention: true` only"),
    ({"group_query_attention": True, "multi_latent_attention": True}, "`multi_latent_attention`, not both"),
    ({"moe_ffn_hidden_size": 8}, "`moe_ffn_hidden_size` needs `num_experts`"),
    (
        {
            "num_experts": 4,
            "moe_ffn_hidden_size": 64,
            "tensor_model_parallel_size": 2,
            "add_bias_linear": False,
        },
        "experts with tensor_model_parallel_size > 1 need `sequence_parallel: true`",
    ),
    (
        {
            "num_experts": 4,
            "moe_ffn_hidden_size": 64,
            "tensor_model_parallel_size": 2,
            "sequence_parallel": True,
        },
        "experts with biases need expert_tensor_parallel_size 1",
    ),
    (
        {
            "num_experts": 4,
            "moe_router_load_balancing_type": ["aux_loss", "seq_aux_loss"],
            "moe_aux_loss_coeff": 0.1,
        },
        "give one value for each of the 2 moe_router_load_balancing_type",
    ),
    ({"fp16": True, "bf16": True}, "give `fp16` or `bf16`, not both"),
    ({"fp16_lm_cross_entropy": True}, "`fp16_lm_cross_entropy` needs `fp16: true`"),
    ({"fp32_residual_connection": True}, "`fp32_residual_connection` needs `fp16` or `bf16`"),
    ({"cross_entropy_loss_fusion": True}, "rounds gradients to bf16"),
    ({"cross_entropy_loss_fusion": True, "cross_entropy_fusion_impl": "te"}, "the engine refuses `te`"),
    ({"recompute_granularity": "full", "recompute_num_layers": 1}, "needs `recompute_method`"),
    ({"recompute_granularity": "full", "recompute_method": "block"}, "needs `recompute_num_layers`"),
    (
        {"recompute_granularity": "selective", "recompute_num_layers": 1},
        "is read with recompute_granularity: full only",
    ),
    (
        {"recompute_activations": True, "recompute_method": "block"},
        "is read with recompute_granularity: full only",
    ),
    (
        {"distribute_saved_activations": True},
        "needs tensor_model_parallel_size > 1 and recompute_granularity: full",
    ),
    (
        {
            "distribute_saved_activations": True,
            "tensor_model_parallel_size": 2,
            "sequence_parallel": True,
            "recompute_granularity": "full",
            "recompute_method": "block",
            "recompute_num_layers": 1,
        },
        "not with sequence_parallel",
    ),
    ({"overlap_param_gather": True, "overlap_grad_reduce": True}, "needs `use_distributed_optimizer: true`"),
    ({"overlap_param_gather": True, "use_distributed_optimizer": True}, "needs `overlap_grad_reduce: true`"),
    ({"tp_comm_overlap": True}, "`tp_comm_overlap` needs `sequence_parallel: true`"),
    ({"save_interval": None}, "`save_interval` is required"),
    ({"save_retain_interval": 7}, "save_retain_interval 7 must be a multiple of save_interval 5"),
    ({"fp8_format": "hybrid", "fp4_format": "e2m1"}, "give `fp8_format` or `fp4_format`, not both"),
    ({"mock_data": False}, "no data: give `data_path`"),
    ({"vocab_size": None}, "the NullTokenizer needs `vocab_size`"),
    ({"sft": True}, "`sft` is not done by FlagScale's training program"),
    ({"micro_batch_size": 3}, "global_batch_size 16 must be a multiple of 3"),
]


@pytest.mark.parametrize(("changes", "says"), RULES)
def test_arguments_that_do_not_fit_together(refused: Refused, changes: dict[str, Any], says: str) -> None:
    (message,) = refused(changes, ranks=changes.get("tensor_model_parallel_size", 1))
    assert says in message


def test_another_program_may_do_what_ours_does_not(build: Build) -> None:
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


ON_CPU: list[tuple[dict[str, Any], str]] = [
    (
        {"tensor_model_parallel_size": 2, "sequence_parallel": True, "transformer_impl": "local"},
        "sequence parallelism is not done by Megatron's local layers",
    ),
    ({"context_parallel_size": 2, "transformer_impl": "local"}, "use `transformer_impl: torch`"),
    (
        {"num_experts": 2, "moe_ffn_hidden_size": 64},
        "experts with biases are computed wrong on the platform cpu",
    ),
    (
        {"moe_grouped_gemm": True, "transformer_impl": "local"},
        "the grouped product of experts is not done by Megatron's local layers",
    ),
    ({"fp8_format": "hybrid"}, "FP8 arithmetic needs a GPU"),
    ({"async_save": True, "async_strategy": "nvrx"}, "`nvrx` needs a GPU"),
    ({"async_save": True, "ckpt_format": "torch_dcp"}, "needs `ckpt_format: torch_dist`"),
    ({"distributed_backend": "nccl"}, "nccl needs GPUs"),
    ({"transformer_impl": "transformer_engine"}, "`transformer_engine` needs a GPU"),
    ({"cuda_graph_impl": "local"}, "CUDA graphs need a GPU"),
]


@pytest.mark.parametrize(("changes", "says"), ON_CPU)
def test_what_host_processors_cannot_do(
    refused: Refused, build: Build, changes: dict[str, Any], says: str
) -> None:
    ranks = 1
    for name in ("tensor", "pipeline"):
        ranks *= changes.get(f"{name}_model_parallel_size", 1)
    ranks *= changes.get("context_parallel_size", 1)
    (message,) = refused(changes, ranks=ranks, platform="cpu")
    assert says in message
    assert build(changes, ranks=ranks, platform="nvidia").world_size == ranks


def test_the_portable_layers_do_every_parallelism_on_processors(build: Build) -> None:
    layout = {"tensor_model_parallel_size": 2, "sequence_parallel": True, "context_parallel_size": 2}
    assert build(layout, ranks=4, platform="cpu").layout == "tp2 x cp2"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"cp_comm_type": ["a2a"], "context_parallel_size": 2}, "knows cp_comm_type p2p and all_gather"),
        ({"attention_backend": "flash"}, "does not go with transformer_impl torch"),
        ({"softmax_type": "learnable"}, "does not go with transformer_impl torch"),
        ({"use_cpu_initialization": True}, "add `init_by_rank: true`"),
        ({"moe_grouped_gemm": True}, "takes experts without biases"),
    ],
)
def test_what_the_portable_layers_do_not_do(
    refused: Refused, build: Build, changes: dict[str, Any], says: str
) -> None:
    ranks = changes.get("context_parallel_size", 1)
    for platform, chosen in (("cpu", {}), ("nvidia", {"transformer_impl": "torch"})):
        (message,) = refused({**changes, **chosen}, ranks=ranks, platform=platform)
        assert says in message
    assert build(changes, ranks=ranks, platform="nvidia").world_size == ranks


def test_experts_are_cut_on_processors_as_elsewhere(build: Build) -> None:
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
        ({"tokenizer_path": "./nowhere"}, "train.tokenizer_path: is `tokenizer_model` now"),
    ],
)
def test_what_the_engine_changes_is_a_notice(build: Build, changes: dict[str, Any], says: str) -> None:
    (notice,) = build(changes).notices
    assert says in notice


def test_data_without_a_split_is_a_notice(
    build: Build, write_data: Callable[..., str], tmp_path: Path
) -> None:
    prefix = write_data(tmp_path / "text")
    (notice,) = build({"mock_data": None, "data_path": prefix}).notices
    assert "`split` is not given" in notice


def test_hostile_values_reach_argv_verbatim(build: Build) -> None:
    from tests.unit.conftest import HOSTILE

    for text in HOSTILE:
        argv = build({"wandb_exp_name": text, "wandb_project": "p"}).role.argv
        assert (
            f"--wandb-exp-name={text}" in argv
            or value(build({"wandb_exp_name": text}), "--wandb-exp-name") == text
        )
