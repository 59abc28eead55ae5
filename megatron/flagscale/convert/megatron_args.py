"""The arguments with which Megatron computes a model. Standard library only.

If a checkpoint does not hold an argument, the argument has the default given in the engine's catalog.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from flagscale.checks.gemma import SETTINGS
from flagscale.config.catalog import Option, catalog_of
from flagscale.errors import UserError
from flagscale.vision.arguments import arguments_of
from megatron.flagscale.convert.families import registry
from megatron.flagscale.convert.families.base import Family
from megatron.flagscale.convert.model import Model, Yarn

ARCHITECTURE = (
    "normalization",
    "swiglu",
    "quick_geglu",
    "squared_relu",
    "position_embedding_type",
    "add_bias_linear",
    "add_qkv_bias",
    "qk_layernorm",
    "apply_layernorm_1p",
    "layernorm_zero_centered_gamma",
    "rotary_percent",
    "rotary_interleaved",
    "multi_latent_attention",
    "attention_output_gate",
    "qk_l2_norm",
    "softmax_type",
    "activation_func_clamp_value",
    "glu_linear_offset",
    "window_size",
    "window_attn_skip_freq",
    "no_rope_freq",
    "use_mup",
    "mtp_num_layers",
    "mtp_use_repeated_layer",
    "heterogeneous_layers_config_encoded_json",
    "experimental_attention_variant",
    "apply_residual_connection_post_layernorm",
    "norm_position",
    *SETTINGS,
    "qk_layernorm_across_heads",
)
"""Arguments that change what a model computes: each has the family's value, or else the engine's default."""
_OF_EXPERTS = (
    "moe_router_pre_softmax",
    "moe_router_score_function",
    "moe_router_enable_expert_bias",
    "moe_router_topk_scaling_factor",
    "moe_router_group_topk",
    "moe_shared_expert_intermediate_size",
    "moe_shared_expert_gate",
    "moe_layer_freq",
    "moe_latent_size",
    "moe_apply_probs_on_input",
    "moe_mlp_glu_interleave_size",
    "moe_shared_expert_glu_interleave_size",
)
OF_SIZES = {
    "window": "window_size",
    "shared": "moe_shared_expert_intermediate_size",
    "dense": "moe_layer_freq",
    "mtp": "mtp_num_layers",
}
"""Fields of `Model` -> arguments that vary in families that have them."""
AUX_LOSS, BALANCING = "moe_aux_loss_coeff", "moe_router_load_balancing_type"
"""The settings of families with a loss that balances the experts; the second is `aux_loss` if it is none."""
DROPOUTS = ("attention_dropout", "hidden_dropout")
"""Fields of `Model`, by the same names in Megatron. The engine's default is 0.1."""
_ALSO_STORED = (
    "group_query_attention",
    "untie_embeddings_and_output_weights",
    "use_rope_scaling",
    "rotary_seq_len_interpolation_factor",
    "num_experts",
    "bf16",
    "fp16",
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
)


@cache
def _options() -> dict[str, list[Option]]:
    """Return the engine's options, by the argument that they set."""
    catalog = files("flagscale").joinpath("engines", "catalog", "megatron.json")
    found: dict[str, list[Option]] = {}
    for option in catalog_of(json.loads(catalog.read_text(encoding="utf-8"))).options.values():
        found.setdefault(option.dest, []).append(option)
    return found


@cache
def engine_defaults() -> Mapping[str, Any]:
    """Return the engine's default of each argument."""
    return {argument: options[0].default for argument, options in _options().items()}


def expected_arguments(family: Family) -> dict[str, Any]:
    """Return the arguments that are the same in every model of a family, with their values."""
    checked = (*ARCHITECTURE, *(_OF_EXPERTS if family.has_experts else ()))
    expected = {**{name: engine_defaults().get(name) for name in checked}, **family.arguments}
    varying = {setting.argument for setting in family.settings} | {*family.ignored}
    is_stretched = family.is_rotary and not family.is_latent and "yarn" in family.scalings
    varying |= {POSITIONS} if is_stretched else set()
    varying |= {argument for field, argument in OF_SIZES.items() if field in family.keys}
    return {name: value for name, value in expected.items() if name not in varying}


POSITIONS = "position_embedding_type"
"""`rope` or, where yarn stretches them and attention is not latent, `yarn`."""
YARN = {"original": "yarn_original_max_position_embeddings"} | {
    name: f"yarn_{name}" for name in ("beta_fast", "beta_slow")
}
"""Fields of `Yarn` -> arguments whose null stands for the same values."""
TRUNCATE = "yarn_correction_range_round_to_int"
"""The argument for `Yarn.truncate`; null means true."""


def task_arguments(model: Model) -> dict[str, Any]:
    """Return the arguments for training this model, named as in a task file."""
    whole = {**dict(_arguments(model)), **registry.load(model.family).task}
    if whole.get("multi_latent_attention") and model.hidden % model.heads == 0:
        del whole["kv_channels"]  # it has no effect; without it, the engine demands that the heads divide
    pictures = arguments_of(model.vision) if model.vision else {}
    return {
        **dict(_option(name, value) for name, value in whole.items() if not _is_default(name, value)),
        **{name: value for name, value in pictures.items() if value is not None},
    }


def _is_default(argument: str, value: Any) -> bool:
    """Return whether an argument can be left out; sizes and choices are always written."""
    return isinstance(value, bool | None) and value == engine_defaults().get(argument)


def _option(argument: str, value: Any) -> tuple[str, Any]:
    """Return the option that sets an argument, and the option's value; True for a flag."""
    is_flag = isinstance(value, bool)
    kinds = ("value", "append") if not is_flag else ("flag_true", "bool_pair") if value else ("flag_false",)
    for option in _options().get(argument, ()):
        if option.kind in kinds:
            written = ",".join(map(str, value)) if isinstance(value, tuple) else value
            written = _layer_pattern(value) if isinstance(value, list) else written
            return option.name.replace("-", "_"), True if is_flag else written
    raise UserError(f"a family has {argument} = {value!r}, but Megatron has no option that sets it")


def _layer_pattern(layers: list[int]) -> str:
    """Return which layers have experts, as an expression that Megatron evaluates."""
    return f"([0]*{layers.count(0)}+[1]*{layers.count(1)})"


def checkpoint_arguments(model: Model) -> dict[str, Any]:
    """Return the arguments that a checkpoint of this model holds, by their names in the engine's `args`."""
    family = registry.load(model.family)
    return {
        **{name: engine_defaults().get(name) for name in _ALSO_STORED},
        "num_query_groups": model.heads,
        **expected_arguments(family),
        **dict(_arguments(model)),
        **(arguments_of(model.vision) if model.vision else {}),
    }


def _arguments(model: Model) -> Iterator[tuple[str, Any]]:
    family = registry.load(model.family)
    yield "num_layers", model.layers
    yield "hidden_size", model.hidden
    yield "ffn_hidden_size", model.dense_ffn or model.ffn
    yield "num_attention_heads", model.heads
    yield "kv_channels", model.head_dim
    yield "max_position_embeddings", model.positions
    if model.rope:
        yield "rotary_base", int(model.rope.theta) if model.rope.theta.is_integer() else model.rope.theta
        if model.rope.scaling == "llama3":
            yield "use_rope_scaling", True
            yield "rope_scaling_factor", model.rope.factor
        elif model.rope.scaling == "linear":
            yield "rotary_seq_len_interpolation_factor", int(model.rope.factor)
        elif model.rope.yarn:
            yarn, usual = model.rope.yarn, Yarn()
            yield ("rope_type" if family.is_latent else POSITIONS), "yarn"
            yield "rotary_scaling_factor", model.rope.factor
            yield from ((name, getattr(yarn, name)) for name in ("mscale", "mscale_all_dim"))
            for field, name in YARN.items():
                yield name, None if getattr(yarn, field) == getattr(usual, field) else getattr(yarn, field)
            yield TRUNCATE, yarn.truncate
        elif family.is_latent:
            yield "rope_type", "rope"
    yield "layernorm_epsilon", model.norm_eps
    stretched = model.rope is not None and model.rope.yarn is not None and not family.is_latent
    yield from (
        (name, value) for name, value in family.arguments.items() if not stretched or name != POSITIONS
    )
    yield from model.settings.items()
    yield from ((name, values(model)[0]) for name, values in family.computed.items())
    if AUX_LOSS in model.settings and BALANCING not in model.settings:
        yield BALANCING, "aux_loss"
    yield from ((name, getattr(model, name)) for name in DROPOUTS)
    if model.window:
        yield "window_size", (model.window - 1, 0)
    yield "vocab_size", model.vocab
    yield "padded_vocab_size", model.vocab
    if model.groups != model.heads:
        yield "group_query_attention", True
        yield "num_query_groups", model.groups
    yield "untie_embeddings_and_output_weights", not model.tied
    if model.experts:
        yield "num_experts", model.experts
        yield "moe_ffn_hidden_size", model.ffn
        yield "moe_router_topk", model.topk
    if model.shared:
        yield OF_SIZES["shared"], model.shared * model.ffn
    if "dense" in family.keys:
        yield OF_SIZES["dense"], [0] * model.dense + [1] * (model.layers - model.dense)
    if model.mtp:
        yield OF_SIZES["mtp"], model.mtp
    if model.dtype != "float32":
        yield "bf16" if model.dtype == "bfloat16" else "fp16", True
