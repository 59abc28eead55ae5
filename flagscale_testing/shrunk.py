"""An example's training made small enough for a few processor cores, with the same arguments where possible.

It keeps what makes the model the kind that it is: which arguments are set, the ratio of attention heads to
groups, dense layers before those with experts, and every way to split it over ranks, each in two parts.
Sizes, degrees, batches and the number of steps become small, and the learning rate so large that the loss
falls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flagscale.checks.experts import expert_layers
from flagscale.config.schema import Experiment
from flagscale.config.source_map import SourceMap
from flagscale.engines.megatron.adapter import MEGATRON
from flagscale.values import Host, Job

LENGTH, VOCABULARY, STEPS = 64, 255, 3
_HIDDEN, _HEAD = 64, 8
_DEVIATION = 0.02
"""Megatron's default standard deviation of initial weights."""
_DEGREES = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
_EXPERTS = "expert_model_parallel_size"
_WIDTHS = ("ffn_hidden_size", "moe_ffn_hidden_size", "moe_shared_expert_intermediate_size")
_AT_MOST: Mapping[str, int] = {
    **dict.fromkeys((*_DEGREES, _EXPERTS, "expert_tensor_parallel_size"), 2),
    "num_experts": 8,
    "moe_router_topk": 2,
    "moe_router_num_groups": 4,
    "moe_router_group_topk": 2,
    "q_lora_rank": 24,
    "kv_lora_rank": 24,
    "qk_head_dim": 16,
    "qk_pos_emb_head_dim": 8,
    "v_head_dim": 16,
    "mtp_num_layers": 1,
    "num_layers_per_virtual_pipeline_stage": 1,
    "num_virtual_stages_per_pipeline_rank": 2,
    "seq_length": LENGTH,
    "micro_batch_size": 2,
    "global_batch_size": 8,
    "lora_rank": 4,
    "train_iters": STEPS,
    "eval_interval": STEPS,
    "eval_iters": 1,
    "lr_warmup_iters": 0,
    "num_workers": 0,
}
"""The largest value of each argument; one that is not set stays unset."""
_LEFT_OUT = (
    *("save_interval", "exit_signal_handler"),  # nothing is saved
    *("data_path", "split", "train_data_path", "valid_data_path", "test_data_path", "mock_data"),
    *("tokenizer_type", "tokenizer_model", "vocab_size", "make_vocab_size_divisible_by"),
    *(
        "decoder_first_pipeline_num_layers",
        "decoder_last_pipeline_num_layers",
        "pipeline_model_parallel_layout",
    ),
)
"""Arguments that depend on files or on the number of layers; data and tokenizer are replaced."""


def shrunk(experiment: Experiment, **changes: Any) -> Experiment:
    """Return a small version of a training; `changes` are further arguments, None for one to leave out.

    It has no data yet: `changes` should hold a path to tokens below `VOCABULARY`, or `mock_data`.
    """
    given = flat(experiment.arguments)
    values = {name: value for name, value in given.items() if name not in _LEFT_OUT}
    values |= {name: min(most, given[name]) for name, most in _AT_MOST.items() if given.get(name)}
    values |= _widths(given) | _layers(given, values)
    values |= {"lr": 1e-3, "min_lr": 1e-4, "save": None, "load": None, "tensorboard_dir": None}
    values |= {
        "tokenizer_type": "NullTokenizer",
        "vocab_size": VOCABULARY,
        "make_vocab_size_divisible_by": 32,
    }
    if given.get("window_size"):
        values["window_size"] = [min(LENGTH // 4, one) for one in given["window_size"]]
    return experiment.model_copy(update={"arguments": values | changes})


def flat(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of nested sections by their names; the sections have no meaning."""
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        found |= flat(value) if isinstance(value, Mapping) else {name: value}
    return found


def _widths(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the widths: heads per group and every ratio to the hidden size stay, in multiples of 16."""
    heads = int(given["num_attention_heads"])
    groups = int(given["num_query_groups"]) if given.get("group_query_attention") else heads
    small_groups = 4 if groups == heads else 2
    small_heads = small_groups * (heads // groups)
    hidden = small_heads * max(_HEAD, _HIDDEN // small_heads)
    scale = hidden / int(given["hidden_size"])
    deviation = float(given.get("init_method_std", _DEVIATION)) / scale**0.5  # activations keep their size
    found: dict[str, Any] = {"hidden_size": hidden, "num_attention_heads": small_heads}
    found["init_method_std"] = round(deviation, 4)
    found |= {name: max(1, round(given[name] * scale / 16)) * 16 for name in _WIDTHS if given.get(name)}
    if groups != heads:
        found["num_query_groups"] = small_groups
    if given.get("kv_channels"):
        found["kv_channels"] = given["kv_channels"] * heads * hidden // (given["hidden_size"] * small_heads)
    return found


def _layers(given: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return two layers per stage or, in an interleaved pipeline, two chunks of one layer."""
    layers = 4 if (values.get("pipeline_model_parallel_size") or 1) > 1 or given.get("moe_layer_freq") else 2
    found: dict[str, Any] = {"num_layers": layers}
    if given.get("moe_layer_freq"):
        have_experts = expert_layers(given)
        found["moe_layer_freq"] = [int(one) for one in (*have_experts[:2], *have_experts[-2:])]
    if given.get("recompute_num_layers"):
        found["recompute_num_layers"] = 1
    if meshes := given.get("hetero_process_meshes"):
        ends = [_mesh(mesh, layers // 2) for mesh in (meshes[0], meshes[-1])]
        found["hetero_process_meshes"] = ends
    return found


def _mesh(given: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """Return a mesh of one stage on two ranks, split in the way that has the largest degree."""
    degrees = {name: given[name] for name in ("tp", "cp", "dp", "ep") if name in given}
    return {max(degrees, key=degrees.__getitem__, default="dp"): 2, "layers": [layers]}


def ranks_of(values: Mapping[str, Any]) -> int:
    """Return the smallest number of ranks above one that holds these degrees."""
    if values.get("hetero_process_meshes"):
        return 2 * len(values["hetero_process_meshes"])
    tensor, stages, context = (int(values.get(name) or 1) for name in _DEGREES)
    experts = int(values.get(_EXPERTS) or 1) * int(values.get("expert_tensor_parallel_size") or tensor)
    return max(2, stages * max(tensor * context, experts))


def job_of(experiment: Experiment) -> Job:
    """Return the training as the launcher would start it on this host."""
    ranks = ranks_of(experiment.arguments)
    return MEGATRON.build(experiment, (Host(0, "localhost", ranks, "cpu"),), SourceMap())
