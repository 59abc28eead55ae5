"""A model as Megatron's arguments, and the reverse. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flagscale.errors import Problem, UserError
from megatron.flagscale.convert.families import FAMILIES
from megatron.flagscale.convert.model import Model, Rope

# What no family has: the argument, the value that all of them share.
_REQUIRED = {
    "normalization": "RMSNorm",
    "swiglu": True,
    "position_embedding_type": "rope",
    "add_bias_linear": False,
    "apply_layernorm_1p": False,
    "layernorm_zero_centered_gamma": False,
    "rotary_percent": 1.0,
    "rotary_interleaved": False,
    "multi_latent_attention": False,
    "attention_output_gate": False,
    "qk_l2_norm": False,
    "softmax_type": "vanilla",
    "activation_func_clamp_value": None,
    "window_size": None,
    "no_rope_freq": None,
    "use_mup": False,
    "mtp_num_layers": None,
    "heterogeneous_layers_config_encoded_json": None,
    "experimental_attention_variant": None,
    "apply_residual_connection_post_layernorm": False,
}
_REQUIRED_OF_EXPERTS = {
    "moe_router_pre_softmax": False,
    "moe_router_score_function": "softmax",
    "moe_router_enable_expert_bias": False,
    "moe_router_topk_scaling_factor": None,
    "moe_router_group_topk": None,
    "moe_shared_expert_intermediate_size": None,
    "moe_layer_freq": 1,
    "moe_latent_size": None,
}


def model_of(args: Mapping[str, Any], vocab: int, where: str, family: str | None = None) -> Model:
    """Return the model that a checkpoint's arguments describe; `family` chooses where several fit.

    Raises:
        UserError: no family computes what these arguments say; every reason is told.
    """
    experts = args.get("num_experts") or 0
    required = {**_REQUIRED, **(_REQUIRED_OF_EXPERTS if experts else {})}
    problems = [
        Problem(f"no family has {name} = {args[name]!r}, only {value!r}", where)
        for name, value in required.items()
        if name in args and args[name] != value
    ]
    traits = {
        "qkv_bias": bool(args.get("add_qkv_bias")),
        "qk_norm": bool(args.get("qk_layernorm")),
        "moe": bool(experts),
    }
    fitting = [
        name
        for name, candidate in FAMILIES.items()
        if all(getattr(candidate, trait) == has for trait, has in traits.items())
    ]
    described = ", ".join(f"{trait} {'yes' if has else 'no'}" for trait, has in traits.items())
    if not fitting:
        problems.append(Problem(f"no family is built like this model ({described})", where))
    elif family and family not in fitting:
        hint = f"fitting: --model {' or '.join(fitting)}"
        problems.append(Problem(f"the model is no {family} ({described})", where, hint))
    if problems:
        raise UserError(problems)
    heads = args["num_attention_heads"]
    ffn = (args.get("moe_ffn_hidden_size") if experts else None) or args["ffn_hidden_size"]
    return Model(
        family=family or fitting[0],
        layers=args["num_layers"],
        hidden=args["hidden_size"],
        ffn=ffn,
        heads=heads,
        groups=(args.get("num_query_groups") or heads) if args.get("group_query_attention") else heads,
        head_dim=args.get("kv_channels") or args["hidden_size"] // heads,
        vocab=vocab,
        positions=args["max_position_embeddings"],
        norm_eps=args["layernorm_epsilon"],
        rope=_rope(args),
        tied=not args["untie_embeddings_and_output_weights"],
        dtype="bfloat16" if args.get("bf16") else "float16" if args.get("fp16") else "float32",
        experts=experts,
        topk=args["moe_router_topk"] if experts else 0,
    )


def _rope(args: Mapping[str, Any]) -> Rope:
    theta = float(args["rotary_base"])
    if args.get("use_rope_scaling"):
        return Rope(theta, "llama3", float(args["rope_scaling_factor"]))
    if args.get("rotary_seq_len_interpolation_factor"):
        return Rope(theta, "linear", float(args["rotary_seq_len_interpolation_factor"]))
    return Rope(theta)


def task_arguments(model: Model) -> dict[str, Any]:
    """Return the arguments of a training of this model, named as in a task file."""
    family = FAMILIES[model.family]
    arguments: dict[str, Any] = {
        "num_layers": model.layers,
        "hidden_size": model.hidden,
        "ffn_hidden_size": model.ffn,
        "num_attention_heads": model.heads,
        "kv_channels": model.head_dim,
        "max_position_embeddings": model.positions,
        "position_embedding_type": "rope",
        "rotary_base": int(model.rope.theta) if model.rope.theta.is_integer() else model.rope.theta,
        "normalization": "RMSNorm",
        "norm_epsilon": model.norm_eps,
        "swiglu": True,
        "disable_bias_linear": True,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "vocab_size": model.vocab,
        "padded_vocab_size": model.vocab,
    }
    if model.groups != model.heads:
        arguments |= {"group_query_attention": True, "num_query_groups": model.groups}
    if not model.tied:
        arguments["untie_embeddings_and_output_weights"] = True
    if family.qkv_bias:
        arguments["add_qkv_bias"] = True
    if family.qk_norm:
        arguments["qk_layernorm"] = True
    if model.rope.scaling == "llama3":
        arguments |= {"use_rope_scaling": True, "rope_scaling_factor": model.rope.factor}
    elif model.rope.scaling == "linear":
        arguments["rotary_seq_len_interpolation_factor"] = int(model.rope.factor)
    if model.experts:
        arguments |= {
            "num_experts": model.experts,
            "moe_ffn_hidden_size": model.ffn,
            "moe_router_topk": model.topk,
        }
    if model.dtype != "float32":
        arguments["bf16" if model.dtype == "bfloat16" else "fp16"] = True
    return arguments


def checkpoint_arguments(model: Model) -> dict[str, Any]:
    """Return the arguments that a checkpoint of this model holds, named as the engine keeps them.

    Those of a task file; what absence means there is said here, as the engine's own checkpoints do.
    """
    given = task_arguments(model)
    given["layernorm_epsilon"] = given.pop("norm_epsilon")
    given["add_bias_linear"] = not given.pop("disable_bias_linear")
    return {
        **_REQUIRED,
        **(_REQUIRED_OF_EXPERTS if model.experts else {}),
        "group_query_attention": False,
        "num_query_groups": model.heads,
        "untie_embeddings_and_output_weights": False,
        "add_qkv_bias": False,
        "qk_layernorm": False,
        "use_rope_scaling": False,
        "rotary_seq_len_interpolation_factor": None,
        "num_experts": None,
        "bf16": False,
        "fp16": False,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        **given,
    }
