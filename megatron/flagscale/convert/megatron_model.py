"""Recognize a model by the arguments of a Megatron checkpoint. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flagscale.checks.experts import OTHER_BALANCE
from flagscale.errors import Problem, UserError
from flagscale.vision.arguments import vision_of
from megatron.flagscale.convert.families import registry
from megatron.flagscale.convert.families.base import Family, Setting
from megatron.flagscale.convert.megatron_args import (
    AUX_LOSS,
    BALANCING,
    DROPOUTS,
    OF_SIZES,
    POSITIONS,
    TRUNCATE,
    YARN,
    engine_defaults,
    expected_arguments,
)
from megatron.flagscale.convert.model import Model, Rope, Yarn

_LINEAR = "rotary_seq_len_interpolation_factor"


def model_of(args: Mapping[str, Any], vocab: int, where: str, family: str | None = None) -> Model:
    """Return the model that a checkpoint's arguments describe; `family` chooses one if several match.

    Raises:
        UserError: no family matches these arguments; every reason is reported.
    """
    args = {**engine_defaults(), **args}
    found = _family(args, where, family)
    model = _described(args, vocab, found)
    allowed = {name: values(model) for name, values in found.computed.items()}
    if wrong := [name for name, values in allowed.items() if args[name] not in values]:
        raise UserError(
            Problem(
                f"{name} = {args[name]!r}; only {allowed[name][-1]!r} is supported in {found.name}",
                where,
                f"train with `{name}: {allowed[name][-1]}`, which is what other libraries compute",
            )
            for name in wrong
        )
    return model


def _described(args: Mapping[str, Any], vocab: int, found: Family) -> Model:
    heads, experts = args["num_attention_heads"], args["num_experts"] or 0
    ffn = (args["moe_ffn_hidden_size"] if experts else None) or args["ffn_hidden_size"]
    return Model(
        family=found.name,
        layers=args["num_layers"],
        hidden=args["hidden_size"],
        ffn=ffn,
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
        shared=(args["moe_shared_expert_intermediate_size"] or 0) // ffn if "shared" in found.keys else 0,
        dense=(_dense(args) or 0) if "dense" in found.keys else 0,
        dense_ffn=args["ffn_hidden_size"] if "dense_ffn" in found.keys else 0,
        mtp=(args["mtp_num_layers"] or 0) if "mtp" in found.keys else 0,
        window=_window(args) if "window" in found.keys else 0,
        **{name: args[name] for name in DROPOUTS if name in found.keys},
        settings={one.argument: _setting(args, one) for one in found.settings} | _balancing(args, found),
        vision=vision_of(args) if "vision_model_type" in args else None,
    )


def _setting(args: Mapping[str, Any], setting: Setting) -> Any:
    value = args[setting.argument]
    return setting.unset if value is None and not setting.values else value


def _balancing(args: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Return the settings of the loss that balances the experts; one that the family lacks counts as none."""
    settings = {setting.argument: setting for setting in family.settings}
    if AUX_LOSS not in settings:
        return {}
    weights = dict(zip(_listed(args[BALANCING]), _listed(args[AUX_LOSS]), strict=False))
    kinds = [*settings[BALANCING].values.values()] if BALANCING in settings else ["aux_loss"]
    kind = next((one for one in kinds if one in weights), kinds[0])
    return {AUX_LOSS: weights.get(kind, 0.0)} | ({BALANCING: kind} if BALANCING in settings else {})


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _dense(args: Mapping[str, Any]) -> int | None:
    """Return the number of layers without experts before all others; None if there are any among these."""
    pattern = args["moe_layer_freq"]
    if isinstance(pattern, int):
        pattern = [int(layer % pattern == 0) for layer in range(args["num_layers"])]
    dense = pattern.index(1) if 1 in pattern else len(pattern)
    return dense if all(pattern[dense:]) and len(pattern) == args["num_layers"] else None


def _family(args: Mapping[str, Any], where: str, wanted: str | None) -> Family:
    candidates = [(family, _differences(family, args)) for family in registry.families(wanted)]
    fitting = [family.name for family, differences in candidates if not differences]
    if fitting and wanted in (None, *fitting):
        return registry.load(wanted or fitting[0])
    # The closest family has the fewest differences; among equals, the one with the most matching arguments.
    family, differences = min(
        (one for one in candidates if wanted in (None, one[0].name)),
        key=lambda one: (len(one[1]), -len(expected_arguments(one[0]))),
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


def _differences(family: Family, args: Mapping[str, Any]) -> dict[str, str]:
    """Return the arguments whose values no model of the family has, with a text of the expected value."""
    differences = {
        name: repr(value)
        for name, value in expected_arguments(family).items()
        if args.get(name) != value and (args.get(name) or value)  # None means off, as False does
    }
    for setting in family.settings:
        known = setting.values.values()
        if known and setting.argument != BALANCING and args.get(setting.argument) not in known:
            differences[setting.argument] = " or ".join(map(repr, known))
    if POSITIONS not in expected_arguments(family) and args.get(POSITIONS) not in ("rope", "yarn"):
        differences[POSITIONS] = "'rope' or 'yarn'"
    if bool(args.get("num_experts")) != family.has_experts:
        differences["num_experts"] = "a number" if family.has_experts else "None"
    if family.has_experts and {*_listed(args.get(BALANCING))} & {*OTHER_BALANCE}:
        differences[BALANCING] = "a loss such as 'aux_loss'"  # the others choose other experts
    if args.get("use_rope_scaling") and args.get(_LINEAR) and args.get(POSITIONS) == "rope":
        differences[_LINEAR] = "None with use_rope_scaling"  # Megatron would apply both
    if "dense" in family.keys and _dense(args) is None:
        differences["moe_layer_freq"] = "layers without experts only before all others"
    width = args.get("moe_ffn_hidden_size") or args["ffn_hidden_size"]
    if "shared" in family.keys and (args.get(OF_SIZES["shared"]) or 1) % width:
        differences[OF_SIZES["shared"]] = f"a multiple of {width}, the width of an expert,"
    return differences


def _window(args: Mapping[str, Any]) -> int:
    """Return the number of tokens that a token attends to; Megatron counts those before it, and -1 is all."""
    before = (args["window_size"] or (-1,))[0]
    return before + 1


def _rope(args: Mapping[str, Any]) -> Rope:
    theta = float(args["rotary_base"])
    if args["multi_latent_attention"]:
        factor = float(args["rotary_scaling_factor"])
        is_scaled = args["rope_type"] != "rope" and factor != 1
        return Rope(theta, "yarn", factor, _yarn(args)) if is_scaled else Rope(theta)
    if args[POSITIONS] == "yarn":
        factor = float(args["rotary_scaling_factor"])
        return Rope(theta, "yarn", factor, _yarn(args)) if factor != 1 else Rope(theta)
    if args["use_rope_scaling"]:
        return Rope(theta, "llama3", float(args["rope_scaling_factor"]))
    if args[_LINEAR]:
        return Rope(theta, "linear", float(args[_LINEAR]))
    return Rope(theta)


def _yarn(args: Mapping[str, Any]) -> Yarn:
    given = {field: args[name] for field, name in YARN.items() if args[name] is not None}
    scales = {name: args[name] for name in ("mscale", "mscale_all_dim")}
    return Yarn(**given, **scales, truncate=args[TRUNCATE] is not False)
