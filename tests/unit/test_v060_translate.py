"""Files of FlagScale v0.6.0: every key is valid today, translated, dropped with a notice, or refused."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flagscale.checks.hetero.keys import KEYS
from flagscale.cli import main
from flagscale.config.catalog import Catalog
from flagscale.config.engine_args import FlatKey, Unknown
from flagscale.config.schema import Commands, ExperimentSection, Runner
from flagscale.config.source_map import SourceMap
from flagscale.config.v060.derived import ffn_hidden_size
from flagscale.config.v060.keys import (
    EXPERIMENT,
    TASK,
    WITH_OWN_RULES,
)
from flagscale.config.v060.translate import (
    place_taken,
    translate_experiment,
    translate_inference,
    translate_task,
)
from flagscale.config.v060.ulysses import CONTEXT, KEY
from flagscale.errors import Problem
from megatron.flagscale.vision.arguments import add_arguments

EXCHANGE = ("cp_comm_type", "hierarchical_context_parallel_sizes")
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
    of_pictures = argparse.ArgumentParser()
    add_arguments(of_pictures)
    dests = {action.dest for action in of_pictures._actions}
    assert catalog.by_name.get(key) or key in (*TASK, *WITH_OWN_RULES, *KEYS, *dests)


@pytest.mark.parametrize("key", TASK)
def test_no_key_is_ignored_silently(catalog: Catalog, key: str) -> None:
    kept, _, notices, problems = translate({key: "a value"})
    change = TASK[key]
    if change.act == "refuse":
        (problem,) = problems
        assert problem.what == "this key of FlagScale v0.6.0 is no longer supported"
        assert problem.hint == change.text
        assert set(kept.values()) <= {Unknown.VALUE}
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
        ("eval_metric", False),
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


@pytest.mark.parametrize(("key", "value"), [("eval_metric", True), ("extra_valid_interval", 1)])
def test_a_key_with_an_effect_is_refused(key: str, value: object) -> None:
    assert len(translate({key: value})[3]) == 1


@pytest.mark.parametrize(
    ("tree", "becomes"),
    [
        ({KEY: 4}, {CONTEXT: 4, "cp_comm_type": "a2a"}),
        ({KEY: "4", CONTEXT: None}, {CONTEXT: 4, "cp_comm_type": "a2a"}),
        (
            {CONTEXT: 1, KEY: 2, "enable_hetero": False},
            {CONTEXT: 2, "cp_comm_type": "a2a", "enable_hetero": False},
        ),
        (
            {KEY: 2, CONTEXT: "3"},
            {CONTEXT: 6, "cp_comm_type": "a2a+p2p", "hierarchical_context_parallel_sizes": [2, 3]},
        ),
        ({KEY: 1, CONTEXT: 2}, {CONTEXT: 2}),
        ({KEY: 2, CONTEXT: "many"}, {CONTEXT: "many", **dict.fromkeys(EXCHANGE, Unknown.VALUE)}),
        ({KEY: Unknown.VALUE, CONTEXT: 2}, dict.fromkeys((CONTEXT, *EXCHANGE), Unknown.VALUE)),
    ],
)
def test_ulysses_is_an_exchange_between_context_parallel_ranks(
    tree: dict[str, Any], becomes: dict[str, Any]
) -> None:
    kept, _, notices, problems = translate(tree)
    assert (kept, problems) == (becomes, [])
    assert len(notices) == (Unknown.VALUE not in becomes.values())


def test_the_notice_names_all_that_ulysses_becomes() -> None:
    assert translate({KEY: 2, CONTEXT: 2})[2] == [
        f"train.{KEY}, train.{CONTEXT}: is now `{CONTEXT}: 4`, `cp_comm_type: a2a+p2p`, "
        "`hierarchical_context_parallel_sizes: [2, 2]`"
    ]


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({KEY: True}, "must be a whole number of at least 1, not True"),
        ({KEY: "two"}, "must be a whole number of at least 1, not 'two'"),
        ({KEY: -2}, "must be a whole number of at least 1, not -2"),
        ({KEY: 2, "enable_hetero": True}, "cannot be combined with meshes, as in v0.6.0"),
        ({KEY: 2, "hetero_process_meshes": [1] * 10}, "cannot be combined with meshes"),
        ({KEY: 2, "cp_comm_type": "p2p"}, "v0.6.0 had no `cp_comm_type`"),
    ],
)
def test_a_ulysses_size_that_cannot_be_translated(tree: dict[str, Any], says: str) -> None:
    kept, _, _, (problem,) = translate(tree)
    assert says in problem.what
    assert problem.where == f"train.{KEY}"
    assert kept[CONTEXT] is Unknown.VALUE


def test_keys_of_weights_and_biases_go_to_the_environment() -> None:
    kept, environment, _, _ = translate(
        {"wandb_api_key": "secret", "wandb_mode": "offline", "wandb_project": "p"}
    )
    assert kept == {"wandb_project": "p"}
    assert environment == {"WANDB_API_KEY": "secret", "WANDB_MODE": "offline"}
    *_, (problem,) = translate({"wandb_mode": "onlin", "wandb_project": "p"})
    assert problem.what == "`wandb_mode` cannot be 'onlin'; valid: online, offline, disabled"


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


@pytest.mark.parametrize("wrong", ["x", 0, -8, True])
def test_a_rule_without_numbers_is_refused(wrong: object) -> None:
    _, _, notices, (problem,) = translate({"swiglu": True, "multiple_of": wrong, "hidden_size": 64})
    assert problem.what == f"`multiple_of` must be a number above 0, not {wrong!r}"
    assert problem.where == "train.multiple_of"
    assert notices == []


@pytest.mark.parametrize(
    "tree",
    [
        {"hidden_size": 64, "swiglu": True, "multiple_of": 8, "hidden_dim_multiplier": 1.5},
        {"seq_length": 64, "global_batch_size": 8, "train_samples": 46, "rampup_batch_size": [2, 2, 9]},
        {
            "tokenizer_type": "Qwen2TokenizerFS",
            "vocab_size": 151851,
            "make_vocab_size_divisible_by": 64,
            "tensor_model_parallel_size": 2,
        },
    ],
)
def test_numbers_may_be_text(tree: dict[str, Any]) -> None:
    """As the engine reads `hidden_size: "64"`."""
    as_text = {key: str(value) if isinstance(value, int | float) else value for key, value in tree.items()}
    as_text |= {key: value for key, value in tree.items() if isinstance(value, bool)}
    assert translate(as_text) == translate(tree)


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
        auto_tuner={"platform": {"airs_switch": True}, "args_mapping": {"a": "b"}},
    )
    assert [problem.where for problem in problems] == [
        "experiment.shell_cmds",
        "experiment.auto_tuner.platform.airs_switch",
        "experiment.auto_tuner.args_mapping",
    ]


def test_experiment_keys_that_are_off_are_dropped_with_a_notice() -> None:
    off = {"platform": {"airs_switch": False}, "control": {}}
    tree, notices, problems = experiment(auto_tuner=off, runner={"no_shared_fs": True, "nnodes": 2})
    assert tree == {"auto_tuner": {"control": {}}, "runner": {"no_shared_fs": True, "nnodes": 2}}
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


REMOVED = """
encoder_pipeline_model_parallel_size encoder_tensor_model_parallel_size hybrid_attention_ratio
hybrid_mlp_ratio moe_extended_tp no_async_tensor_model_parallel_allreduce
no_scatter_gather_tensors_in_pipeline pipeline_model_parallel_split_rank renormalize_blend_weights
retriever_seq_length retro_add_retriever retro_attention_gate retro_cyclic_train_iters
retro_encoder_attention_dropout retro_encoder_hidden_dropout retro_encoder_layers
retro_no_verify_neighbor_count retro_num_neighbors retro_num_retrieved_chunks retro_project_dir
s3_cache_path standalone_embedding_stage tiktoken_special_tokens use_legacy_models
"""
"""Options of Megatron at v0.6.0 (megatron/training/arguments.py) that megatron-core 0.19.2 does not have."""


@pytest.mark.parametrize("key", REMOVED.split())
def test_every_option_that_megatron_removed_is_named(catalog: Catalog, key: str) -> None:
    assert key in TASK
    assert key not in catalog.by_name
    kept, _, notices, problems = translate({key: False})
    assert problems == []
    assert len(notices) == 1
    assert [*kept] in ([], [TASK[key].text])


@pytest.mark.parametrize(
    ("key", "default"),
    [
        ("retriever_seq_length", 256),
        ("retro_encoder_layers", 2),
        ("retro_attention_gate", 1.0),
        ("encoder_tensor_model_parallel_size", 0),
        ("hybrid_mlp_ratio", 0.0),
    ],
)
def test_a_removed_option_with_its_default_is_dropped(key: str, default: object) -> None:
    assert translate({key: default})[3] == []
    assert len(translate({key: 7})[3]) == 1


def test_equal_notices_are_one() -> None:
    _, _, notices, _ = translate({"device_type": False, "eval_metric": None, "use_mcore_models": True})
    assert notices == [
        "dropped because it has no effect (2 places)\n    train.device_type\n    train.eval_metric",
        "train.use_mcore_models: dropped because the engine does not read it: it has no other models",
    ]


def test_meshes_in_an_older_form_hide_rules_without_meshes() -> None:
    kept, _, _, (problem,) = translate({"process_meshes": [4, 1, 1, 2, 1, 2]})
    assert "hetero_process_meshes" in problem.hint
    assert kept == {"hetero_process_meshes": Unknown.VALUE}


def ramp(value: object, **changes: Any) -> tuple[dict[str, Any], list[str], list[Problem]]:
    tree = {"seq_length": 64, "global_batch_size": 8, "train_samples": 46, "rampup_batch_size": value}
    kept, _, notices, problems = translate(tree | changes)
    return kept, notices, problems


def test_a_ramp_becomes_a_schedule_in_tokens() -> None:
    kept, notices, problems = ramp([2, 2, 20])
    assert kept == {
        "seq_length": 64,
        "eval_global_batch_size": 8,
        "train_samples": 46,
        "step_batch_size_schedule": "0:2 448:4 896:6 1280:8",
    }
    assert problems == []
    assert notices == [
        "train.rampup_batch_size, train.global_batch_size: is now a `step_batch_size_schedule` of 4 steps, "
        "0:2 ... 1280:8 (tokens:batch), and `eval_global_batch_size: 8`"
    ]


def test_a_last_batch_that_is_not_full_is_left_out_as_before() -> None:
    kept, (_, notice), _ = ramp([2, 2, 20], train_samples=45)
    assert (kept["train_samples"], kept["lr_decay_samples"]) == (38, 45)
    assert notice.startswith("train.train_samples: is now 38")
    kept, _, _ = ramp([2, 2, 20], train_samples=45, lr_decay_samples=40)
    assert kept["lr_decay_samples"] == 40


@pytest.mark.parametrize("value", [None, [], [8, 4, 100], [4, 4, 0]])
def test_a_ramp_without_steps_is_dropped(value: object) -> None:
    kept, notices, problems = ramp(value)
    assert (kept["global_batch_size"], problems, len(notices)) == (8, [], 1)


@pytest.mark.parametrize(
    ("value", "changes", "says"),
    [
        ([2, 2], {}, "takes three whole numbers"),
        ("2 2 20", {}, "takes three whole numbers"),
        ([2, 0, 20], {}, "takes three whole numbers"),
        ([2, 2, 20], {"global_batch_size": None}, "needs `global_batch_size`"),
        ([2, 4, 20], {}, "steps of 4 do not lead from 2 to global_batch_size 8"),
        ([16, 2, 20], {}, "do not lead from 16"),
        ([2, 2, 10**400], {}, "takes three whole numbers"),
        ([2, 2, 20], {"global_batch_size": 2 * 10**15}, "are more than 5000"),
        ([2, 2, 20], {"train_samples": None, "train_iters": 9}, "`train_samples`, not `train_iters`"),
    ],
)
def test_a_ramp_that_v060_would_have_refused(value: object, changes: dict[str, Any], says: str) -> None:
    kept, _, (problem,) = ramp(value, **changes)
    assert says in problem.what
    assert "step_batch_size_schedule" in problem.hint
    assert kept["step_batch_size_schedule"] is Unknown.VALUE


@pytest.mark.parametrize("name", ["global_batch_size", "seq_length", "train_iters"])
def test_a_ramp_whose_size_is_not_known_is_not_judged(name: str) -> None:
    kept, _, problems = ramp([2, 2, 20], **{name: Unknown.VALUE})
    assert kept["step_batch_size_schedule"] is Unknown.VALUE
    assert problems == []


@pytest.mark.parametrize("name", ["multiple_of", "hidden_dim_multiplier", "hidden_size", "wandb_mode"])
def test_a_blank_in_a_key_with_its_own_rule_hides_no_other_mistake(
    name: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"swiglu": "true", "multiple_of": "8", "hidden_dim_multiplier": "1.3", name: "'${x:??}'"}
    more = [f"train.model.{key}={value}" for key, value in values.items()]
    assert main([*words, *more, "train.model.num_query_groups=2"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("2 mistakes")
    assert "needs `group_query_attention: true`" in error


def test_the_advice_for_extra_validation_sets_is_complete(
    words: list[str], capsys: pytest.CaptureFixture[str], write_data: Callable[..., str]
) -> None:
    for name in ("a", "b", "c"):
        write_data(Path(name), (400, 400))

    def reported(**keys: str) -> str:
        sizes = {"train_iters": "4", "eval_interval": "2", "eval_iters": "1"}
        model = [f"train.model.{key}={value}" for key, value in sizes.items()]
        data = [f"train.data.{key}={value}" for key, value in {"mock_data": "false", **keys}.items()]
        main([*words, *model, *data])
        return capsys.readouterr().err

    sets = "[9,./b,x,9,./c,y]"
    old = reported(data_path="./a", split="'100,0,0'", extra_valid_interval="2", extra_valid_data_path=sets)
    assert old.startswith("1 mistake")
    assert "this key of FlagScale v0.6.0 is no longer supported (2 places)" in old
    new = {
        "train_data_path": "[./a]",
        "valid_data_path": "[./b,./c]",
        "validation_set_names": "[x,y]",
        "multiple_validation_sets": "true",
        "full_validation": "true",
        "validation_set_intervals": "[2,4]",
    }
    assert all(key in old for key in new)
    assert "mistake" not in reported(**new)


def test_keys_of_its_inference() -> None:
    problems: list[Problem] = []
    llm = {"model": "m", "vq_model": "v", "skip_tokenizer_init": True, "trust_remote_code": True}
    sampling = {"top_k": 1, "guidance_scale": 3.0, "detokenize": False}
    raw = {"llm": llm, "generate": {"mode": "G", "ratios": ["1:1"], "sampling": sampling}}
    kept, notices = translate_inference(raw, "inference", SourceMap(), problems)
    image = {"mode": "image", "ratios": ["1:1"], "sampling": {"top_k": 1}, "guidance_scale": 3.0}
    assert kept == {"llm": {"model": "m"}, "generate": image}
    assert problems == []
    assert [notice.split(": ")[0] for notice in notices] == [
        "inference.generate.mode",
        "inference.llm.vq_model",
        "inference.generate.sampling.guidance_scale",
        "inference.llm.skip_tokenizer_init",
        "inference.llm.trust_remote_code",
        "inference.generate.sampling.detokenize",
    ]
    assert translate_inference(kept, "inference", SourceMap(), problems) == (kept, [])


def test_keys_of_other_inferences_are_left() -> None:
    problems: list[Problem] = []
    for raw in (
        {"llm": 3},
        {"llm": {"skip_tokenizer_init": True}, "generate": {"prompts": ["a"]}},
        {"llm": {"trust_remote_code": True}, "generate": {"mode": ["G"]}},
    ):
        assert translate_inference(raw, "inference", SourceMap(), problems) == (raw, [])
    twice = {"generate": {"guidance_scale": 2.0, "sampling": {"guidance_scale": 3.0}}}
    translate_inference(twice, "inference", SourceMap(), problems)
    (problem,) = problems
    assert "3.0 here, 2.0 at inference.generate.guidance_scale" in problem.what


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        ({"model": {"lr": 1, "optimizer": {"lr": 2}}}, "train.model.optimizer.lr"),
        ({"model": {"optimizer": {"lr": 2}, "lr": 1}}, "train.model.lr"),
        ({"data": {"lr": 3}, "system": {"lr": 1}}, "train.data.lr"),
        ({"system": {"lr": 1, "x": {"lr": 2}}, "model": {"lr": 3}}, "train.system.x.lr"),
        ({"system": {"x": {"lr": 2}}, "model": {"x": {"other": 3}}}, ""),
        ({"lr": 1, "more": {"lr": 2}}, ""),
        ({"model": {"a": {"lr": True}, "lr": False}}, "train.model.a.lr"),
        ({"model": {"a": {"lr": False}, "lr": False}}, "train.model.lr"),
        ({"system": {"lr": True}, "model": {"lr": False}}, "train.model.lr"),
    ],
)
def test_which_of_two_values_it_took(arguments: dict[str, Any], place: str) -> None:
    # As its runner merged the sections and argparse took the last of equal options.
    assert place_taken("lr", "train", arguments) == place


def test_a_key_given_several_times_is_one_mistake_that_names_all_places(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"model.lr": 1, "model.a.lr": 2, "data.lr": 3, "model.b.lr": 3}
    assert main([*words, *(f"train.{key}={value}" for key, value in values.items())]) == 2
    error = capsys.readouterr().err
    assert error.startswith("1 mistake")
    assert "`lr` is given 4 times with different values" in error
    assert all(f"train.{key}" in error for key in values)
    assert "keep one of them; FlagScale v0.6.0 took 3, " in error
