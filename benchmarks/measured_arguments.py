"""The engine's arguments (by dest) of one measured row: those that were published, else from its keys."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from benchmarks.measured_fields import MOST, MOST_PARTS, Assumed, Fields, Unusable
from benchmarks.measured_model import degree_arguments, model_arguments, recipe
from flagscale.checks.megatron import RECOMPUTED
from flagscale.config.argument_values import words_of
from flagscale.config.catalog import Catalog, load_catalog
from flagscale.engines.megatron.adapter import CATALOG

GPT2_TOKENS = 50257
"""Of the engine's functional tests that name no other tokenizer: GPT-2's BPE on the Pile."""

_OLD_SOFTWARE = ("amp", "sailor", "vtrain", "calculon")
"""Sources whose software is older than TransformerEngine, or does not use it."""

_PARTS = (
    "num_layers",
    "num_experts",
    "mtp_num_layers",
    "pipeline_model_parallel_size",
    "num_virtual_stages_per_pipeline_rank",
    "num_layers_per_virtual_pipeline_stage",
)
_NEEDED = ("num_layers", "hidden_size", "num_attention_heads", "seq_length", "micro_batch_size")
_SIZES = (
    *_PARTS,
    *_NEEDED,
    "ffn_hidden_size",
    "num_query_groups",
    "kv_channels",
    "vocab_size",
    "padded_vocab_size",
    "global_batch_size",
    "tensor_model_parallel_size",
    "context_parallel_size",
    "expert_model_parallel_size",
)


_NOT_MODELLED = {
    "use_custom_fsdp": "sharded data parallel (FSDP)",
    "use_megatron_fsdp": "sharded data parallel (FSDP)",
    "use_torch_fsdp2": "sharded data parallel (FSDP)",
    "cpu_offloading": "activations or weights that are kept on the host",
    "cpu_offloading_num_layers": "activations or weights that are kept on the host",
    "fine_grained_activation_offloading": "activations or weights that are kept on the host",
    "export_kd_teacher_load": "distillation: the teacher is on the same devices",
    "perform_rl_step": "reinforcement learning: an inference engine is on the same devices",
    "flextron": "flexible models that train several sizes",
    "encoder_num_layers": "a model with an encoder",
    "decoder_num_layers": "a model with an encoder",
    "bert_binary_head": "a model with an encoder",
}
"""Arguments of any version of the engine that change a job beyond what the planner knows."""


@functools.cache
def catalog() -> Catalog:
    """Return the catalog of the engine."""
    return load_catalog(CATALOG)


def published_arguments(given: Fields) -> dict[str, Any]:
    """Return what a complete command of the engine says; arguments of other versions are left out."""
    if known := [what for name, what in _NOT_MODELLED.items() if given.values.get(name)]:
        raise Unusable(known[0])
    values: dict[str, Any] = {}
    for name, value in given.values.items():
        option = catalog().by_name.get(name.replace("-", "_"))
        if option is None or value is None:
            continue
        if option.takes_many and isinstance(value, str) and value.startswith("["):
            value = value.strip("[]").split()
        if option.dest == "tokenizer_type" and isinstance(value, str) and value.startswith("${"):
            continue
        try:
            values[option.dest] = words_of(option, option.name, value)[1]
        except ValueError as error:
            raise Unusable(f"{given.path}: {error}", is_wrong=True) from None
    for dest, value in values.items():
        most = MOST_PARTS if dest in _PARTS else MOST
        if dest in _SIZES and isinstance(value, int) and not 1 <= value <= most:
            raise Unusable(f"{given.path}.{dest} must be from 1 to {most}, not {value}", is_wrong=True)
    if missing := [dest for dest in _NEEDED if values.get(dest) is None]:
        raise Unusable(f"not published: {given.path}.{missing[0]}")
    if not values.get("vocab_size") and not values.get("padded_vocab_size"):
        if values.get("tokenizer_type") not in (None, "GPT2BPETokenizer"):
            raise Unusable(f"not published: the number of tokens of the {values['tokenizer_type']}")
        values["vocab_size"] = GPT2_TOKENS
    if not values.get("num_experts"):
        values.pop("expert_tensor_parallel_size", None)  # it has no effect
    return values


def arguments_of(row: Fields, assumed: Assumed) -> dict[str, Any]:
    """Return the arguments that the keys of a row stand for."""
    values = {
        **model_arguments(row, assumed),
        **degree_arguments(row),
        **_batch(row, assumed),
        **_precision(row, assumed),
        **_recompute(row, assumed),
        **_flags(row),
        # SimuMax passes --no-create-attention-mask-in-dataloader; Megatron-Bridge's data has no mask.
        "create_attention_mask_in_dataloader": False,
    }
    if row.at("source").text("key") in _OLD_SOFTWARE:
        values |= {"transformer_impl": "local", "attention_backend": "local"}
    return values


def _batch(row: Fields, assumed: Assumed) -> dict[str, Any]:
    train, parallel = row.at("train"), row.at("parallel")
    if train.text("kind") == "lora":
        raise Unusable("low-rank adapters (LoRA)")
    if train.values.get("mbs") is None:
        assumed.add("micro-batches of one sample")
    micro = train.whole("mbs", 1)
    batch = train.values.get("gbs")
    if batch is None and train.values.get("num_microbatches") is None:
        raise Unusable("not published: train.gbs")
    if batch is None:
        return {
            "micro_batch_size": micro,
            "global_batch_size": micro * train.whole("num_microbatches") * parallel.whole("dp"),
        }
    return {"micro_batch_size": micro, "global_batch_size": train.whole("gbs")}


_PRECISIONS = ("fp4", "fp8", "fp16", "bf16", "bfloat16", "fp32", "tf32")


def _precision(row: Fields, assumed: Assumed) -> dict[str, Any]:
    precision = row.at("precision")
    name = (precision.text("compute") or precision.text("params") or "unknown").lower()
    key = row.at("source").text("key")
    if name == "unknown" and key == "sailor":
        # ae_scripts/clariden_scripts/run_opt.slurm gives neither --fp16 nor --bf16.
        return {}
    if name == "unknown":
        assumed.add("bfloat16")
    elif not any(known in name for known in _PRECISIONS):
        raise Unusable(f"a precision that the engine does not have: {name}")
    if "tf32" in name or "fp32" in name:
        return {}
    values: dict[str, Any] = {"fp16": True} if "fp16" in name else {"bf16": True}
    if "fp4" in name:
        values["fp4"] = "e2m1"
    elif "fp8" in name:
        values["fp8"] = "hybrid"
    return values


_NOT_STATED = ("unknown", "", "none or model default")
_PLAIN_SCRIPTS = ("amp", "sailor")
"""Sources whose scripts have no argument for recompute (amp: examples/ds_pretrain_gpt2_pipe.sh; sailor:
ae_scripts/clariden_scripts/run_opt.slurm)."""


_FULL = {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}


def _recompute(row: Fields, assumed: Assumed) -> dict[str, Any]:
    given = row.values.get("recompute")
    if given is None:
        given = "unknown"
    if isinstance(given, str):
        kind = given.lower()
        if kind == "full":
            return {**_FULL}
        if kind == "selective":
            return {"recompute_granularity": "selective"}
        if kind in _NOT_STATED and row.at("source").text("key") not in _PLAIN_SCRIPTS:
            assumed.add("no recompute", decides_memory=True)
        elif kind not in (*_NOT_STATED, "none"):
            raise Unusable(f"recompute of a kind that the engine does not have: {given}")
        return {}
    fields = row.at("recompute")
    granularity = fields.text("granularity")
    if granularity == "full":
        method = fields.text("method", "uniform")
        if method not in ("uniform", "block"):
            raise Unusable(f"recompute by a method that the engine does not have: {method}")
        return {**_FULL, "recompute_method": method, "recompute_num_layers": fields.whole("num_layers", 1)}
    if granularity not in ("", "selective"):
        raise Unusable(f"recompute of a kind that the engine does not have: {granularity}")
    names = fields.values.get("modules")
    modules = [str(one) for one in names] if isinstance(names, list) else re.findall(r"\w+", str(names or ""))
    if unknown := {*modules} - {*RECOMPUTED}:
        raise Unusable(f"recompute of a module that the engine does not have: {min(unknown)}")
    if not granularity or names == []:
        return {}
    # Without names, the engine has its own default.
    return {"recompute_granularity": "selective", **({"recompute_modules": modules} if modules else {})}


_SAME_MEANING = {
    "distributed_optimizer": "use_distributed_optimizer",
    "overlap_grad_reduce": "overlap_grad_reduce",
    "overlap_param_gather": "overlap_param_gather",
    "tp_comm_overlap": "tp_comm_overlap",
    "overlap_p2p": "overlap_p2p_comm",
    "gradient_accumulation_fusion": "gradient_accumulation_fusion",
    "moe_pad_to_capacity": "moe_pad_expert_input_to_capacity",
    "moe_grouped_gemm": "moe_grouped_gemm",
    "moe_permute_fusion": "moe_permute_fusion",
}
"""Switches by their names in the rows."""
_TEXTS = {"moe_dispatcher": "moe_token_dispatcher_type", "attention": "attention_backend"}


def _flags(row: Fields) -> dict[str, Any]:
    flags = row.at("flags")
    known = {name for name, value in flags.values.items() if value is not None}
    values: dict[str, Any] = {
        dest: flags.truth(name) for name, dest in _SAME_MEANING.items() if name in known
    }
    values |= {dest: flags.text(name) for name, dest in _TEXTS.items() if name in known}
    if capacity := flags.positive("moe_capacity_factor"):
        values["moe_expert_capacity_factor"] = capacity
    if row.at("parallel").whole("vpp", 1) > 1 and values.get("overlap_p2p_comm") is False:
        # SimuMax states it for all of its jobs, but its scripts do not pass --no-overlap-p2p-communication,
        # and the engine switches the overlap off only if the pipeline is not interleaved.
        del values["overlap_p2p_comm"]
    if kind := flags.values.get("cross_entropy_fusion"):
        values |= {"cross_entropy_loss_fusion": True, "cross_entropy_fusion_impl": str(kind)}
    if kind := flags.text("cp_comm"):
        values["cp_comm_type"] = [kind]
    if flags.values.get("moe_balance") == "forced":
        values["moe_router_force_load_balancing"] = True
    if flags.values.get("grad_reduce_in_fp32") is False:
        values["grad_reduce_in_bf16"] = True
    if row.at("source").text("key") == "mbridge":
        values |= _of_bridge(row)
    return values


_ONE_GRAPH = (
    "_enable_hybridep_full_iteration_mxfp8",
    "_enable_deepseek_full_iteration_mxfp8",
    "_apply_gpt_oss_120b_full_iter_fp8mx_configs",
)
"""Functions of Megatron-Bridge's recipes that set `cuda_graph_impl: full_iteration` and
`overlap_moe_expert_parallel_comm` (src/megatron/bridge/perf_recipes/{qwen,deepseek,gpt_oss}/common.py)."""


def _of_bridge(row: Fields) -> dict[str, Any]:
    """Return the overlap of Megatron-Bridge; its recipes overlap the reduction unless they say otherwise."""
    given = recipe(row)
    overlap = str(given.values.get("comm_overlap") or "")
    called = " ".join(row.at("flags").at("recipe").values.get("calls") or [])
    graphs = {
        "cuda_graph_impl": given.values.get("model.cuda_graph_impl"),
        "cuda_graph_modules": given.values.get("model.cuda_graph_scope"),
    }
    if is_one_graph := any(name in called for name in _ONE_GRAPH):
        graphs = {"cuda_graph_impl": "full_iteration"}
    return {
        **{dest: value for dest, value in graphs.items() if value},
        "overlap_grad_reduce": given.values.get("ddp.overlap_grad_reduce") is not False,
        "overlap_param_gather": True,
        "tp_comm_overlap": "tp_comm_overlap=True" in overlap
        or bool(given.values.get("comm_overlap.tp_comm_overlap_cfg")),
        "overlap_moe_expert_parallel_comm": is_one_graph
        or "overlap_moe_expert_parallel_comm=True" in overlap
        or given.values.get("comm_overlap.overlap_moe_expert_parallel_comm") is True,
    }


def with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments (by dest) with the engine's defaults for the others."""
    return {**{option.dest: option.default for option in catalog().options.values()}, **values}
