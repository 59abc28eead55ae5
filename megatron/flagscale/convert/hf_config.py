"""A model as Hugging Face's `config.json`, and the reverse. Standard library only.

What is written opens in version 4 and 5 of `transformers`, which name the precision (`torch_dtype`, `dtype`)
and the rotary positions (`rope_theta` with `rope_scaling`, `rope_parameters`) differently; both are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flagscale.errors import Problem, UserError, nearest
from megatron.flagscale.convert.families import FAMILIES, Family
from megatron.flagscale.convert.model import DTYPES, Model, Rope

# Settings of `config.json` that change what a model computes: the value that all families share.
_REQUIRED = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "quantization_config": None,
    "partial_rotary_factor": 1.0,
}
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def read_config(config: Mapping[str, Any], where: str, family: str | None = None) -> Model:
    """Return the model that a `config.json` describes; `family` is the user's word for it, or None.

    Raises:
        UserError: an unknown architecture, a missing key, or what Megatron has no argument for.
    """
    found = _family(config, where, family)
    problems = [
        Problem(f"`{name}` is {config[name]!r}, only {value!r} can be converted", where)
        for name, value in _REQUIRED.items()
        if config.get(name, value) != value
    ]
    positions = _number(config, "max_position_embeddings", where, problems)
    window = config.get("sliding_window")
    if found.moe and window is not None and window < positions:
        problems.append(Problem(f"`sliding_window` is {window}: not supported", where))
    rope = _rope(config, where, problems)
    heads = _number(config, "num_attention_heads", where, problems)
    hidden = _number(config, "hidden_size", where, problems)
    groups = config.get("num_key_value_heads") or heads
    if heads % max(groups, 1):
        problems.append(Problem(f"{heads} attention heads in {groups} groups", where))
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    if dtype not in DTYPES.values():
        problems.append(Problem(f"`dtype` {dtype} is none of {', '.join(DTYPES.values())}", where))
    model = Model(
        family=family or found.name,
        layers=_number(config, "num_hidden_layers", where, problems),
        hidden=hidden,
        ffn=_number(config, "intermediate_size", where, problems),
        heads=heads,
        groups=groups,
        head_dim=config.get("head_dim") or hidden // max(heads, 1),
        vocab=_number(config, "vocab_size", where, problems),
        positions=positions,
        norm_eps=float(config.get("rms_norm_eps", 1e-5 if found.moe else 1e-6)),
        rope=rope,
        tied=bool(config.get("tie_word_embeddings", False)),
        dtype=dtype,
        experts=_number(config, "num_local_experts", where, problems) if found.moe else 0,
        topk=_number(config, "num_experts_per_tok", where, problems) if found.moe else 0,
    )
    if problems:
        raise UserError(problems)
    return model


def _family(config: Mapping[str, Any], where: str, wanted: str | None) -> Family:
    architectures = config.get("architectures") or []
    architecture = architectures[0] if architectures else f"model_type {config.get('model_type')!r}"
    for family in FAMILIES.values():
        if architecture == family.architecture or (
            not architectures and config.get("model_type") == family.model_type
        ):
            if wanted and FAMILIES[wanted].architecture != family.architecture:
                raise UserError(f"{where}: the model is {architecture}, no {wanted}")
            return family
    known = {family.architecture for family in FAMILIES.values()}
    hint = nearest(str(architecture), known)
    raise UserError([Problem(f"the architecture {architecture} cannot be converted", where, hint)])


def _number(config: Mapping[str, Any], name: str, where: str, problems: list[Problem]) -> int:
    value = config.get(name)
    if isinstance(value, int) and value > 0:
        return value
    what = f"`{name}` is missing" if value is None else f"`{name}` is {value!r}, no positive number"
    problems.append(Problem(what, where))
    return 1


def _rope(config: Mapping[str, Any], where: str, problems: list[Problem]) -> Rope:
    parameters = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = float(parameters.get("rope_theta", config.get("rope_theta", 10000.0)))
    if not theta.is_integer():
        problems.append(Problem(f"`rope_theta` {theta} is no whole number: Megatron takes none", where))
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    factor = float(parameters.get("factor", 1.0))
    if kind == "default":
        return Rope(theta)
    if kind == "linear" and factor.is_integer():
        return Rope(theta, "linear", factor)
    if kind == "llama3":
        for name, value in _LLAMA3.items():
            if parameters.get(name) != value:
                told = f"`{name}` of the rotary scaling is {parameters.get(name)!r}, Megatron has {value:g}"
                problems.append(Problem(told, where))
        return Rope(theta, "llama3", factor)
    problems.append(Problem(f"rotary scaling {kind!r} with factor {factor:g}: Megatron has none", where))
    return Rope(theta)


def write_config(model: Model, special: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `config.json`; `special` are the tokenizer's ids (`eos_token_id`, ...)."""
    family = FAMILIES[model.family]
    scaling: dict[str, Any] = {"rope_type": model.rope.scaling or "default"}
    if model.rope.scaling:
        scaling["factor"] = model.rope.factor
    if model.rope.scaling == "llama3":
        scaling |= _LLAMA3
    config: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "hidden_act": "silu",
        "hidden_size": model.hidden,
        "intermediate_size": model.ffn,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.groups,
        "head_dim": model.head_dim,
        "vocab_size": model.vocab,
        "max_position_embeddings": model.positions,
        "rms_norm_eps": model.norm_eps,
        "rope_theta": model.rope.theta,
        "rope_parameters": {"rope_theta": model.rope.theta, **scaling},
        "tie_word_embeddings": model.tied,
        "attention_dropout": 0.0,
        "dtype": model.dtype,
        "torch_dtype": model.dtype,
        "use_cache": True,
        **special,
    }
    if model.rope.scaling:
        config["rope_scaling"] = scaling
    if family.architecture == "LlamaForCausalLM":
        config |= {"attention_bias": False, "mlp_bias": False}
    if family.moe:
        config |= {
            "num_local_experts": model.experts,
            "num_experts_per_tok": model.topk,
            "sliding_window": None,
        }
    if family.qk_norm:
        config["attention_bias"] = False
    if family.model_type.startswith("qwen"):
        config |= {"use_sliding_window": False, "sliding_window": None}
    return config
