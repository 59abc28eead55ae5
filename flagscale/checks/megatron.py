"""Rules between Megatron's arguments besides degrees: length, schedule, model, precision, recompute.

`rule_violations` covers the rules of `megatron/training/arguments.py:validate_args` that users run into; the
others cover arguments that the engine accepts and then ignores, or computes differently.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from math import isfinite
from typing import Any

from flagscale.checks.experts import (
    expert_violations,
    group_routing_violations,
    head_violations,
    ineffective_remarks,
    silent_router_violations,
)
from flagscale.checks.pictures import has_pictures
from flagscale.checks.saving import saving_violations
from flagscale.checks.schedule import unit_of
from flagscale.checks.sft import PROGRAM
from flagscale.checks.stablelm2 import stablelm2_remarks
from flagscale.checks.steering import steering_remarks
from flagscale.checks.tracing import tracing_remarks
from flagscale.errors import Violation, nearest

_REQUIRED = {
    "num_layers": "the number of transformer layers",
    "hidden_size": "the width of the model",
    "num_attention_heads": "the number of attention heads",
    "seq_length": "tokens per sample",
    "max_position_embeddings": "the longest sequence the model can read",
    "lr": "the learning rate",
    "tokenizer_type": "HuggingFaceTokenizer (with `tokenizer_model`), NullTokenizer (with `vocab_size`), ...",
}


def rule_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield every rule of the engine that the arguments (by dest, defaults included) break."""
    for name, what in _REQUIRED.items():
        if values.get(name) is None:
            yield name, f"`{name}` is required: {what}"
    yield from _number_violations(values)
    yield from _length_violations(values)
    yield from _schedule_violations(values)
    yield from _model_violations(values)
    yield from _precision_violations(values)
    yield from _recompute_violations(values)
    yield from _overlap_violations(values)
    yield from saving_violations(values)


def remarks(values: Mapping[str, Any], given: Collection[str] = ()) -> Iterator[Violation]:
    """Yield changes that the engine makes silently: they deserve a notice, not an error.

    `given`: the arguments (by dest) that the user has given.
    """
    if values.get("sequence_parallel") and values.get("tensor_model_parallel_size") == 1:
        yield "sequence_parallel", "has no effect with tensor_model_parallel_size 1"
    if values.get("cp_comm_type") not in (None, ["p2p"]) and values.get("context_parallel_size") == 1:
        yield "cp_comm_type", "has no effect with context_parallel_size 1"
    is_selective = values.get("recompute_granularity") == "selective"
    if values.get("recompute_modules") and not (
        is_selective or values.get("recompute_activations") or values.get("moe_layer_recompute")
    ):
        yield "recompute_modules", "has no effect without `recompute_granularity: selective`"
    if values.get("num_experts") and values.get("moe_ffn_hidden_size") is None:
        yield "num_experts", "moe_ffn_hidden_size is not given: the experts use ffn_hidden_size"
    if values.get("data_path") and values.get("split") is None and not has_pictures(values):
        yield "data_path", "`split` is not given: 96.9 % train, 3 % validation, 0.1 % test"
    if values.get("multi_latent_attention") and values.get("kv_channels") is not None:
        yield "kv_channels", "has no effect with multi_latent_attention, which has widths of its own"
    if values.get("mtp_num_layers") and values.get("recompute_method") == "block":
        yield "mtp_num_layers", "`recompute_method: block` does not recompute the heads that it adds"
    yield from ineffective_remarks(values, given)
    yield from stablelm2_remarks(values)
    yield from steering_remarks(values)
    yield from tracing_remarks(values)


LEAST: Mapping[str, int] = {
    **dict.fromkeys(
        (
            *("num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups"),
            *(
                "kv_channels",
                "q_lora_rank",
                "kv_lora_rank",
                "qk_head_dim",
                "qk_pos_emb_head_dim",
                "v_head_dim",
            ),
            *("seq_length", "max_position_embeddings", "moe_router_topk"),
            *("moe_ffn_hidden_size", "make_vocab_size_divisible_by", "train_iters", "train_samples"),
            *("log_interval", "eval_interval", "save_interval", "seed"),
            *("moe_shared_expert_intermediate_size", "rotary_scaling_factor"),
            "yarn_original_max_position_embeddings",
        ),
        1,
    ),
    **dict.fromkeys(
        (
            *("lr", "min_lr", "lr_warmup_init", "lr_warmup_iters", "lr_warmup_samples", "weight_decay"),
            *("clip_grad", "adam_eps", "init_method_std", "hidden_dropout"),
            *("attention_dropout", "eval_iters", "num_workers", "mtp_num_layers", "mtp_loss_scaling_factor"),
            *("moe_router_bias_update_rate", "moe_z_loss_coeff"),
            *("moe_router_num_groups", "moe_router_group_topk", "moe_router_topk_scaling_factor"),
        ),
        0,
    ),
}
"""The least value of each number that the engine does not check itself, or not before it has started."""


def _number_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield numbers that no training can have."""
    for name, value in values.items():
        if isinstance(value, float) and not isfinite(value):
            yield name, f"`{name}` must be a number, not {value}"
        elif name in LEAST and isinstance(value, int | float) and value < LEAST[name]:
            yield name, f"`{name}` must be at least {LEAST[name]}, not {value}"


def _length_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    iters, samples = values.get("train_iters"), values.get("train_samples")
    if iters is None and samples is None:
        yield "train_iters", "`train_iters` or `train_samples` is required: how long to train"
    elif iters is not None and samples is not None:
        yield "train_samples", "give `train_iters` or `train_samples`, not both"
    else:
        unit, other = ("samples", "iters") if iters is None else ("iters", "samples")
        for name in (f"lr_decay_{other}", f"lr_warmup_{other}", f"lr_wsd_decay_{other}"):
            if values.get(name):
                instead = name.replace(other, unit)
                yield name, f"the length of the training is given in {unit}: use `{instead}`, not `{name}`"
    length, positions = values.get("seq_length"), values.get("max_position_embeddings")
    if isinstance(length, int) and isinstance(positions, int) and length > positions > 0:
        yield "seq_length", f"seq_length {length} is larger than max_position_embeddings {positions}"


def _schedule_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    unit = unit_of(values)
    warmup, fraction = values.get(f"lr_warmup_{unit}") or 0, values.get("lr_warmup_fraction")
    decay = values.get(f"lr_decay_{unit}") or values.get(f"train_{unit}")
    if fraction is not None and warmup:
        yield "lr_warmup_fraction", f"give `lr_warmup_fraction` or `lr_warmup_{unit}`, not both"
    elif fraction is not None and not 0 <= fraction < 1:
        yield "lr_warmup_fraction", f"`lr_warmup_fraction` must be at least 0 and less than 1, not {fraction}"
    elif decay and warmup >= decay > 0:
        yield (
            f"lr_warmup_{unit}",
            f"the warm-up ({warmup} {unit}) must be shorter than the schedule ({decay})",
        )
    lr, least, first = values.get("lr"), values.get("min_lr") or 0.0, values.get("lr_warmup_init") or 0.0
    if lr is not None and least > lr >= 0:
        yield "min_lr", f"min_lr {least} is larger than lr {lr}"
    if lr is not None and first > lr >= 0:
        yield "lr_warmup_init", f"lr_warmup_init {first} is larger than lr {lr}"
    if values.get("lr_decay_style") == "WSD" and not values.get(f"lr_wsd_decay_{unit}"):
        yield (
            "lr_decay_style",
            f"lr_decay_style WSD needs `lr_wsd_decay_{unit}`: how long it decays at the end",
        )
    for name in ("start_weight_decay", "end_weight_decay"):
        is_constant = values.get("weight_decay_incr_style") == "constant"
        if is_constant and values.get(name) is not None:
            yield name, f"`{name}` needs `weight_decay_incr_style: linear` or `cosine`"
        elif not is_constant and values.get(name) is None:
            yield name, f"weight_decay_incr_style {values.get('weight_decay_incr_style')} needs `{name}`"
    if values.get("override_opt_param_scheduler") and values.get("use_checkpoint_opt_param_scheduler"):
        what = "give `override_opt_param_scheduler` or `use_checkpoint_opt_param_scheduler`, not both"
        yield "override_opt_param_scheduler", what


def _model_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    if values.get("group_query_attention") and values.get("multi_latent_attention"):
        yield "group_query_attention", "give `group_query_attention` or `multi_latent_attention`, not both"
    yield from expert_violations(values)
    yield from head_violations(values)


def _precision_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    fp16, bf16 = values.get("fp16"), values.get("bf16")
    if fp16 and bf16:
        yield "bf16", "give `fp16` or `bf16`, not both"
    if values.get("fp16_lm_cross_entropy") and not fp16:
        yield "fp16_lm_cross_entropy", "`fp16_lm_cross_entropy` needs `fp16: true`"
    if values.get("fp32_residual_connection") and not (fp16 or bf16):
        yield "fp32_residual_connection", "`fp32_residual_connection` needs `fp16` or `bf16`"
    if values.get("fp8") and values.get("fp4"):
        yield "fp4", "give `fp8_format` or `fp4_format`, not both"
    if values.get("cross_entropy_loss_fusion") and values.get("cross_entropy_fusion_impl") == "te":
        what = "`cross_entropy_fusion_impl: te` is rejected by the engine as unstable: use `native`"
        yield "cross_entropy_fusion_impl", what


RECOMPUTED = (
    *("core_attn", "mlp", "moe", "moe_act", "layernorm", "mla_up_proj", "shared_experts"),
    "gdn_norm_out",
)
"""The values of `recompute_modules`."""


def _recompute_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    selective = values.get("recompute_activations")
    kind = "selective" if selective else values.get("recompute_granularity")
    for name in ("recompute_method", "recompute_num_layers"):
        if kind == "full" and values.get(name) is None:
            yield name, f"`recompute_granularity: full` needs `{name}`"
        elif kind != "full" and values.get(name) is not None:
            yield name, f"`{name}` needs `recompute_granularity: full`"
    modules = values.get("recompute_modules") or ()
    for name in sorted({*modules} - {*RECOMPUTED}):
        yield "recompute_modules", f"`recompute_modules`: no such module: {name}; {nearest(name, RECOMPUTED)}"
    if "shared_experts" in modules and values.get("moe_shared_expert_overlap"):
        what = "`recompute_modules: shared_experts` cannot be combined with `moe_shared_expert_overlap`"
        yield "recompute_modules", f"{what}; remove one"
    # Biases become results of the recomputed function, whose gradient is then computed without end
    # (megatron-core 0.19.2, `TransformerLayer`). Not tried with the layers of TransformerEngine.
    is_ours = values.get("transformer_impl") in ("torch", "local")
    if kind == "selective" and "mlp" in modules and is_ours and values.get("add_bias_linear"):
        what = "`recompute_modules: mlp` exhausts the memory if MLPs have biases"
        yield "recompute_modules", f"{what}; add `disable_bias_linear: true`, or remove `mlp`"
    layers = values.get("recompute_num_layers")
    if layers is not None and layers < 1:
        yield "recompute_num_layers", f"`recompute_num_layers` must be at least 1, not {layers}"
    if values.get("distribute_saved_activations"):
        if values.get("tensor_model_parallel_size") == 1 or kind != "full":
            what = "needs tensor_model_parallel_size > 1 and recompute_granularity: full"
            yield "distribute_saved_activations", f"`distribute_saved_activations` {what}"
        elif values.get("sequence_parallel"):
            what = "cannot be combined with `sequence_parallel`, which already distributes them"
            yield "distribute_saved_activations", f"`distribute_saved_activations` {what}"


def _overlap_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    if values.get("overlap_param_gather"):
        if not values.get("use_distributed_optimizer") and not values.get("use_megatron_fsdp"):
            yield "overlap_param_gather", "`overlap_param_gather` needs `use_distributed_optimizer: true`"
        if not values.get("overlap_grad_reduce"):
            yield "overlap_param_gather", "`overlap_param_gather` needs `overlap_grad_reduce: true`"
    if values.get("tp_comm_overlap") and not values.get("sequence_parallel"):
        yield "tp_comm_overlap", "`tp_comm_overlap` needs `sequence_parallel: true`"


def silent_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield the arguments (by dest) that the engine accepts but computes as something else."""
    yield from group_routing_violations(values)
    groups, heads = values.get("num_query_groups"), values.get("num_attention_heads")
    if not values.get("group_query_attention") and groups not in (None, 1, heads):
        # The engine would build full attention, as v0.6.0 did.
        what = (
            "`num_query_groups` needs `group_query_attention: true`; without it, every head is a group of its"
        )
        yield (
            "num_query_groups",
            f"{what} own: remove `num_query_groups` to keep that, as in FlagScale v0.6.0",
        )
    is_native = values.get("cross_entropy_fusion_impl") != "te"
    if (
        values.get("cross_entropy_loss_fusion")
        and is_native
        and not (values.get("fp16") or values.get("bf16"))
    ):
        what = "rounds gradients to bf16 and cannot be combined with an fp32 model; remove it"
        yield "cross_entropy_loss_fusion", f"`cross_entropy_loss_fusion` {what}"
    if values.get(name := "apply_residual_connection_post_layernorm"):
        yield name, f"`{name}` has no effect, because no layer of the engine reads it; remove it"
    yield from silent_router_violations(values)


NOT_SUPPORTED = (
    *("hybrid_layer_pattern", "hybrid_override_pattern", "mtp_hybrid_override_pattern"),
    "hybrid_context_parallel",
    "overlap_moe_expert_parallel_comm",
    "dataloader_inter_document_masking",
    "per_dataset_sequences_path",
    "fim_data",
    "perform_rl_step",
)
"""Arguments (by dest) that FlagScale's forward step and its data would ignore."""


def program_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield the arguments (by dest) that a program without a forward step of its own would ignore."""
    for name in NOT_SUPPORTED:
        if values.get(name):
            what = "is not supported by FlagScale's forward step; remove it, or set"
            yield name, f"`{name}` {what} experiment.task.entrypoint to a program with its own `forward_step`"
    if values.get("sft"):
        what = f"`sft` is not supported; remove it, and train with `experiment.task.entrypoint: {PROGRAM}`"
        yield "sft", f"{what} on pairs that tools/datasets/chat.py has made"
