"""Convert a model's description to Megatron's arguments, and back. Standard library only.

If a checkpoint does not hold an argument, the argument has the default given in the engine's catalog.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from flagscale.config.catalog import Option, catalog_of
from flagscale.errors import Problem, UserError
from megatron.flagscale.convert.families import registry
from megatron.flagscale.convert.families.base import Family
from megatron.flagscale.convert.model import Model, Rope

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
    "window_size",
    "window_attn_skip_freq",
    "no_rope_freq",
    "use_mup",
    "mtp_num_layers",
    "heterogeneous_layers_config_encoded_json",
    "experimental_attention_variant",
    "apply_residual_connection_post_layernorm",
)
"""Arguments that change what a model computes: each has the family's value, or else the engine's default."""
_OF_EXPERTS = (
    "moe_router_pre_softmax",
    "moe_router_score_function",
    "moe_router_enable_expert_bias",
    "moe_router_topk_scaling_factor",
    "moe_router_group_topk",
    "moe_shared_expert_intermediate_size",
    "moe_layer_freq",
    "moe_latent_size",
)
AUX_LOSS = "moe_aux_loss_coeff"
"""The setting of families with a loss that balances the experts."""
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


def _default(argument: str) -> Any:
    options = _options().get(argument)
    return options[0].default if options else None


def model_of(args: Mapping[str, Any], vocab: int, where: str, family: str | None = None) -> Model:
    """Return the model that a checkpoint's arguments describe; `family` chooses one if several match.

    Raises:
        UserError: no family matches these arguments; every reason is reported.
    """
    defaults = {argument: options[0].default for argument, options in _options().items()}
    args = {**defaults, **args}
    found = _family(args, where, family)
    heads, experts = args["num_attention_heads"], args["num_experts"] or 0
    return Model(
        family=found.name,
        layers=args["num_layers"],
        hidden=args["hidden_size"],
        ffn=(args["moe_ffn_hidden_size"] if experts else None) or args["ffn_hidden_size"],
        heads=heads,
        groups=(args["num_query_groups"] or heads) if args["group_query_attention"] else heads,
        head_dim=args["kv_channels"] or args["hidden_size"] // heads,
        vocab=vocab,
        positions=args["max_position_embeddings"],
        norm_eps=args["layernorm_epsilon"],
        rope=_rope(args) if found.is_rotary else None,
        tied=not args["untie_embeddings_and_output_weights"],
        dtype="bfloat16" if args["bf16"] else "float16" if args["fp16"] else "float32",
        experts=experts,
        topk=args["moe_router_topk"] if experts else 0,
        window=_window(args) if "window" in found.keys else 0,
        **{name: args[name] for name in DROPOUTS if name in found.keys},
        settings={setting.argument: _setting(args, setting.argument) for setting in found.settings},
    )


def _setting(args: Mapping[str, Any], argument: str) -> Any:
    """Return the value of a family's setting; balancing losses other than `aux_loss` count as none."""
    value = args[argument]
    if argument != AUX_LOSS:
        return value
    kinds, values = (
        given if isinstance(given, list) else [given]
        for given in (args["moe_router_load_balancing_type"], value)
    )
    return dict(zip(kinds, values, strict=False)).get("aux_loss", 0.0)


def _family(args: Mapping[str, Any], where: str, wanted: str | None) -> Family:
    candidates = [(family, _differences(family, args)) for family in registry.families(wanted)]
    fitting = [family.name for family, differences in candidates if not differences]
    if fitting and wanted in (None, *fitting):
        return registry.load(wanted or fitting[0])
    # The closest family has the fewest differences; among equals, the one with the most matching arguments.
    family, differences = min(
        (one for one in candidates if wanted in (None, one[0].name)),
        key=lambda one: (len(one[1]), -len(_expected(one[0]))),
    )
    if fitting:
        found = ", ".join(f"{name} = {args.get(name)!r}" for name in differences)
        hint = f"use --model {' or '.join(fitting)}"
        raise UserError([Problem(f"the model is not {wanted} ({found})", where, hint)])
    raise UserError(
        Problem(
            f"the model does not match any family: {name} = {args.get(name)!r}, "
            f"but {value} in {family.name}, the {'requested' if wanted else 'closest'} family",
            where,
        )
        for name, value in differences.items()
    )


def _expected(family: Family) -> dict[str, Any]:
    """Return the arguments that are the same in every model of a family, with their values."""
    checked = (*ARCHITECTURE, *(_OF_EXPERTS if family.has_experts else ()))
    expected = {**{name: _default(name) for name in checked}, **family.arguments}
    varying = {setting.argument for setting in family.settings}
    varying |= {"window_size"} if "window" in family.keys else set()
    return {name: value for name, value in expected.items() if name not in varying}


def _differences(family: Family, args: Mapping[str, Any]) -> dict[str, str]:
    """Return the arguments whose values no model of the family has, with a text of the expected value."""
    differences = {
        name: repr(value)
        for name, value in _expected(family).items()
        if args.get(name) != value and (args.get(name) or value)  # None means off, as False does
    }
    for setting in family.settings:
        known = setting.values.values()
        if known and args.get(setting.argument) not in known:
            differences[setting.argument] = " or ".join(map(repr, known))
    if bool(args.get("num_experts")) != family.has_experts:
        differences["num_experts"] = "a number" if family.has_experts else "None"
    return differences


def _window(args: Mapping[str, Any]) -> int:
    """Return the number of tokens that a token attends to; Megatron counts those before it, and -1 is all."""
    before = (args["window_size"] or (-1,))[0]
    return before + 1


def _rope(args: Mapping[str, Any]) -> Rope:
    theta = float(args["rotary_base"])
    if args["use_rope_scaling"]:
        return Rope(theta, "llama3", float(args["rope_scaling_factor"]))
    if args["rotary_seq_len_interpolation_factor"]:
        return Rope(theta, "linear", float(args["rotary_seq_len_interpolation_factor"]))
    return Rope(theta)


def task_arguments(model: Model) -> dict[str, Any]:
    """Return the arguments for training this model, named as in a task file."""
    return dict(_option(name, value) for name, value in _arguments(model) if not _is_default(name, value))


def _is_default(argument: str, value: Any) -> bool:
    """Return whether an argument can be left out; sizes and choices are always written."""
    return isinstance(value, bool | None) and value == _default(argument)


def _option(argument: str, value: Any) -> tuple[str, Any]:
    """Return the option that sets an argument, and the option's value; True for a flag."""
    is_flag = isinstance(value, bool)
    kinds = ("value", "append") if not is_flag else ("flag_true", "bool_pair") if value else ("flag_false",)
    for option in _options().get(argument, ()):
        if option.kind in kinds:
            written = ",".join(map(str, value)) if isinstance(value, tuple) else value
            return option.name.replace("-", "_"), True if is_flag else written
    raise UserError(f"a family has {argument} = {value!r}, but Megatron has no option that sets it")


def checkpoint_arguments(model: Model) -> dict[str, Any]:
    """Return the arguments that a checkpoint of this model holds, by their names in the engine's `args`."""
    family = registry.load(model.family)
    return {
        **{name: _default(name) for name in _ALSO_STORED},
        "num_query_groups": model.heads,
        **_expected(family),
        **dict(_arguments(model)),
    }


def _arguments(model: Model) -> Iterator[tuple[str, Any]]:
    family = registry.load(model.family)
    yield "num_layers", model.layers
    yield "hidden_size", model.hidden
    yield "ffn_hidden_size", model.ffn
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
    yield "layernorm_epsilon", model.norm_eps
    yield from family.arguments.items()
    yield from model.settings.items()
    if AUX_LOSS in model.settings:
        yield "moe_router_load_balancing_type", "aux_loss"
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
    if model.dtype != "float32":
        yield "bf16" if model.dtype == "bfloat16" else "fp16", True
