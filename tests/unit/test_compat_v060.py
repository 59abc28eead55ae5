"""Files of FlagScale v0.6.0: every key is valid today, translated, dropped with a notice, or refused."""

from __future__ import annotations

from typing import Any

import pytest

from flagscale.checks.hetero.keys import KEYS
from flagscale.config.catalog import Catalog
from flagscale.config.compat_v060 import (
    EXPERIMENT,
    TASK,
    WITH_OWN_RULES,
    ffn_hidden_size,
    translate_experiment,
    translate_task,
)
from flagscale.config.engine_args import FlatKey
from flagscale.config.schema import Commands, ExperimentSection, Runner
from flagscale.config.source_map import SourceMap
from flagscale.errors import Problem

ADDED_BY_V060 = """
use_rotary_emb_implement rotary_interleaved_patch norm_init_weight multiple_of hidden_dim_multiplier
wandb_mode wandb_api_key wandb_log_model wandb_log_model_interval
recompute_granularity_per_stage_micro_batch recompute_method_per_stage_micro_batch
recompute_num_layers_per_stage_micro_batch apply_init_customized init_method_std_scaled_embed
init_method_std_scaled_output init_method_std_scaled_attn_q init_method_std_scaled_attn_k
init_method_std_scaled_attn_v init_method_std_scaled_ffn_w1 init_method_std_scaled_ffn_w2
init_method_std_scaled_ffn_w3 apply_init_norm_customized init_weight_attn_norm init_weight_ffn_norm
init_weight_output_norm lr_decay_stablelm2_cosine_samples lr_decay_stablelm2_cosine_max_lr
lr_decay_stablelm2_cosine_period_samples lr_decay_stablelm2_rsqrt_samples
lr_decay_stablelm2_decay_samples lr_decay_stablelm2_alpha lr_decay_stablelm2_beta rampup_save_interval
save_param_index_maps_only save_when_num_microbatches_change finetune_with_optim no_shared_fs
ulysses_sp_parallel_size extra_valid_interval extra_valid_data_path special_tokens_file tokenizer_path
finetune_dataset_type apply_sft_dataset_separated_loss_mask_if_existed device_type server_port model_info
enable_hetero hetero_device_types hetero_current_device_type hetero_pipeline_layer_split
hetero_process_meshes hetero_use_cpu_communication auto_tune eval_metric valid_path dataset_config
prompt_path freeze_LM freeze_ViT language_model_type disable_vision_class_token
allow_missing_vision_projection_checkpoint use_te dataloader_save interleaved_dataset
training_dataset_only vision_model_type image_aspect_ratio mm_patch_merge_type image_grid_pinpoints
use_pos_skipping pos_skipping_range log_dir details_dir scripts_dir pids_dir
"""
"""Every argument that v0.6.0 added to Megatron's, and the four folders that its files could name."""

IN_ITS_EXAMPLES = """
tensor_model_parallel_size pipeline_model_parallel_size sequence_parallel use_distributed_optimizer
overlap_grad_reduce overlap_param_gather tp_comm_overlap recompute_granularity recompute_method
recompute_num_layers bf16 fp16 initial_loss_scale min_loss_scale loss_scale_window
attention_softmax_in_fp32 accumulate_allreduce_grads_in_fp32 log_interval tensorboard_log_interval
tensorboard_dir wandb_project wandb_exp_name wandb_save_dir log_timers_to_tensorboard
log_validation_ppl_to_tensorboard log_throughput log_params_norm log_num_zeros_in_grad
log_memory_to_tensorboard save_interval save load ckpt_format no_load_optim no_load_rng finetune
transformer_impl use_mcore_models use_flash_attn num_layers hidden_size num_attention_heads
group_query_attention num_query_groups ffn_hidden_size seq_length max_position_embeddings norm_epsilon
use_rotary_position_embeddings no_position_embedding rotary_base swiglu normalization attention_dropout
hidden_dropout disable_bias_linear add_qkv_bias qk_layernorm untie_embeddings_and_output_weights
init_method_std weight_decay adam_beta1 adam_beta2 clip_grad lr min_lr lr_decay_style lr_warmup_samples
lr_warmup_fraction train_samples train_iters global_batch_size micro_batch_size rampup_batch_size
eval_iters eval_interval seed data_path data_impl split reset_position_ids reset_attention_mask
eod_mask_loss tokenizer_type tokenizer_model vocab_file merge_file vocab_size
make_vocab_size_divisible_by num_workers num_experts moe_router_topk moe_router_load_balancing_type
moe_aux_loss_coeff expert_model_parallel_size moe_grouped_gemm num_layers_per_virtual_pipeline_stage
context_parallel_size distributed_backend exit_interval
"""


def translate(tree: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str], list[str], list[Problem]]:
    problems: list[Problem] = []
    flat_keys = [FlatKey(name, value, f"train.{name}") for name, value in tree.items()]
    kept, environment, notices = translate_task(flat_keys, SourceMap(), problems)
    return {flat_key.name: flat_key.value for flat_key in kept}, environment, notices, problems


@pytest.mark.parametrize("key", [*ADDED_BY_V060.split(), *IN_ITS_EXAMPLES.split()])
def test_every_key_is_supported_or_explained(catalog: Catalog, key: str) -> None:
    assert catalog.by_name.get(key) or key in (*TASK, *WITH_OWN_RULES, *KEYS)


@pytest.mark.parametrize("key", TASK)
def test_no_key_is_ignored_silently(catalog: Catalog, key: str) -> None:
    kept, _, notices, problems = translate({key: "a value"})
    change = TASK[key]
    if change.act == "refuse":
        (problem,) = problems
        assert problem.what == f"`{key}` of FlagScale v0.6.0 is no longer supported"
        assert problem.hint == change.text
        assert kept == {}
    else:
        (notice,) = notices
        assert notice.startswith(f"train.{key}: ")
        assert kept == ({change.text: "a value"} if change.act == "rename" else {})


@pytest.mark.parametrize("key", [key for key, change in TASK.items() if change.act == "rename"])
def test_new_names_are_arguments_of_the_engine(catalog: Catalog, key: str) -> None:
    assert catalog.by_name.get(TASK[key].text)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("auto_tune", False),
        ("wandb_log_model", None),
        ("extra_valid_interval", 0),
        ("special_tokens_file", ""),
        ("extra_valid_data_path", []),
        ("ulysses_sp_parallel_size", 1),
    ],
)
def test_a_key_without_an_effect_is_dropped_with_a_notice(key: str, value: object) -> None:
    kept, _, notices, problems = translate({key: value})
    assert (kept, problems) == ({}, [])
    assert notices == [f"train.{key}: dropped because it has no effect"]


@pytest.mark.parametrize(
    ("key", "value"), [("auto_tune", True), ("extra_valid_interval", 1), ("ulysses_sp_parallel_size", 2)]
)
def test_a_key_with_an_effect_is_refused(key: str, value: object) -> None:
    assert len(translate({key: value})[3]) == 1


def test_batch_ramp_up_is_refused_because_the_engine_ignores_it() -> None:
    _, _, _, (problem,) = translate({"rampup_batch_size": [32, 32, 2000000]})
    assert "step_batch_size_schedule" in problem.hint


def test_keys_of_weights_and_biases_go_to_the_environment() -> None:
    kept, environment, _, _ = translate(
        {"wandb_api_key": "secret", "wandb_mode": "offline", "wandb_project": "p"}
    )
    assert kept == {"wandb_project": "p"}
    assert environment == {"WANDB_API_KEY": "secret", "WANDB_MODE": "offline"}


@pytest.mark.parametrize(
    ("hidden", "multiple", "multiplier", "size"),
    [
        (4096, 256, 1.0, 11008),
        (5120, 256, 1.0, 13824),
        (8192, 4096, 1.3, 28672),
        (6144, 4096, 1.3, 24576),
        (3, 1, 1.0, 8),
    ],
)
def test_the_width_of_a_swiglu_layer(hidden: int, multiple: int, multiplier: float, size: int) -> None:
    # Llama 7B, 13B and 70B; Aquila 34B.
    assert ffn_hidden_size(hidden, multiple, multiplier) == size


def test_the_rule_becomes_the_size_that_it_stands_for() -> None:
    tree = {"hidden_size": 8192, "swiglu": True, "multiple_of": 4096, "hidden_dim_multiplier": 1.3}
    kept, _, notices, _ = translate(tree)
    assert kept == {"hidden_size": 8192, "swiglu": True, "ffn_hidden_size": 28672}
    assert notices == ["train.multiple_of, train.hidden_dim_multiplier: is now `ffn_hidden_size: 28672`"]


@pytest.mark.parametrize(
    ("tree", "why"),
    [
        (
            {"hidden_size": 64, "swiglu": True, "multiple_of": 8, "ffn_hidden_size": 96},
            "ffn_hidden_size is given",
        ),
        ({"hidden_size": 64, "multiple_of": 8}, "it is used only with swiglu"),
        (
            {"hidden_size": 64, "swiglu": True, "hidden_dim_multiplier": 1.3},
            "it is used only with multiple_of",
        ),
    ],
)
def test_the_rule_is_dropped_if_v060_did_not_use_it(tree: dict[str, Any], why: str) -> None:
    kept, _, (notice,), _ = translate(tree)
    assert notice.endswith(f"dropped because {why}")
    assert kept == {name: value for name, value in tree.items() if name not in WITH_OWN_RULES}


def test_a_rule_without_numbers_is_reported_as_unknown() -> None:
    kept, _, notices, _ = translate({"swiglu": True, "multiple_of": "x", "hidden_size": 64})
    assert kept["multiple_of"] == "x"
    assert notices == []


def experiment(**keys: Any) -> tuple[dict[str, Any], list[str], list[Problem]]:
    problems: list[Problem] = []
    tree = {"experiment": keys}
    notices = translate_experiment(tree, SourceMap(), problems)
    return tree["experiment"], notices, problems


def test_every_key_of_its_experiments_is_known_today() -> None:
    known = {*ExperimentSection.model_fields, *(f"runner.{name}" for name in Runner.model_fields)}
    known |= {*EXPERIMENT, *(f"cmds.{name}" for name in Commands.model_fields)}
    wanted = """exp_name exp_dir task envs cmds.before_start cmds.after_stop auto_tuner shell_cmds ssh_port
        runner.type runner.backend runner.hostfile runner.nnodes runner.nproc_per_node runner.master_addr
        runner.master_port runner.rdzv_id runner.rdzv_backend runner.rdzv_endpoint runner.redirects runner.tee
        runner.log_dir runner.ssh_port runner.no_shared_fs runner.per_node_task runner.node_rank"""
    assert set(wanted.split()) <= known


def test_refused_experiment_keys() -> None:
    _, _, problems = experiment(
        shell_cmds="x",
        auto_tuner={"a": 1},
    )
    assert [problem.where for problem in problems] == [
        "experiment.shell_cmds",
        "experiment.auto_tuner",
    ]


def test_experiment_keys_that_are_off_are_dropped_with_a_notice() -> None:
    tree, notices, problems = experiment(auto_tuner={}, runner={"no_shared_fs": True, "nnodes": 2})
    assert tree == {"runner": {"no_shared_fs": True, "nnodes": 2}}
    assert problems == []
    assert len(notices) == 1


@pytest.mark.parametrize("runner", [{}, None, {"ssh_port": 44}])
def test_the_ssh_port_moves_to_the_runner(runner: dict[str, Any] | None) -> None:
    tree, notices, problems = experiment(ssh_port=44, runner=runner)
    assert tree == {"runner": {"ssh_port": 44}}
    assert notices == ["experiment.ssh_port: renamed to `experiment.runner.ssh_port`"]
    assert problems == []


def test_two_different_ssh_ports() -> None:
    _, _, (problem,) = experiment(ssh_port=44, runner={"ssh_port": 45})
    assert "44 here, 45 at experiment.runner.ssh_port" in problem.what


def test_the_cloud_runner_keeps_its_keys() -> None:
    tree, notices, problems = experiment(runner={"type": "cloud", "node_rank": 1})
    assert tree == {"runner": {"type": "cloud", "node_rank": 1}}
    assert notices == problems == []


@pytest.mark.parametrize("path", ["flagscale/train/train_aquila.py", "./flagscale/train/train_llama.py"])
def test_its_programs_become_ours(path: str) -> None:
    tree, notices, _ = experiment(task={"entrypoint": path})
    assert tree["task"]["entrypoint"] == "megatron.flagscale.train_gpt"
    assert len(notices) == 1


def test_other_programs_are_left_alone() -> None:
    tree, notices, _ = experiment(task={"entrypoint": "./my/train_aquila.py"})
    assert tree["task"]["entrypoint"] == "./my/train_aquila.py"
    assert notices == []


@pytest.mark.parametrize(
    "tree", [{}, {"experiment": None}, {"experiment": {"task": 4, "runner": [1], "ssh_port": 22}}]
)
def test_broken_trees_are_left_for_the_checks(tree: dict[str, Any]) -> None:
    translate_experiment(tree, SourceMap(), [])
