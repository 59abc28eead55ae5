"""Convert a model's description to Hugging Face's `config.json`, and back. Standard library only.

Versions 4 and 5 of `transformers` name the precision (`torch_dtype`, `dtype`) and the rotary positions
(`rope_theta` with `rope_scaling`, `rope_parameters`) differently. Both can open the files written here, and
the files of both can be read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flagscale.errors import Problem, UserError, nearest
from megatron.flagscale.convert.families import registry
from megatron.flagscale.convert.families.base import Family, Setting
from megatron.flagscale.convert.model import DTYPES, Model, Rope

# Keys of `config.json` that change what a model computes, with their values in families that do not set them.
_EXPECTED = {
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "quantization_config": None,
    "partial_rotary_factor": 1.0,
}
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_SIZES = ("layers", "hidden", "heads", "vocab", "positions", "groups", "head_dim", "ffn", "experts", "topk")


def read_config(config: Mapping[str, Any], where: str, family: str | None = None) -> Model:
    """Return the model that a `config.json` describes; `family` is the family requested by the user, or None.

    Raises:
        UserError: the architecture is unknown, a key is missing, or Megatron has no argument for a value.
    """
    found = _family(config, where, family)
    problems: list[Problem] = []
    # Version 5 stores some keys, such as `partial_rotary_factor`, together with the rotary positions.
    config = {**(config.get("rope_parameters") or {}), **config}

    def report(what: str) -> None:
        problems.append(Problem(what, where))

    settings = {setting.argument: _setting(config, setting, report) for setting in found.settings}
    varying = {setting.key for setting in found.settings}
    for name, value in {**_EXPECTED, **found.config}.items():
        if name not in varying and config.get(name, value) != value:
            report(f"`{name}` is {config[name]!r}; only {value!r} is supported")
    known = _sizes(config, found, report)
    if known["heads"] % known["groups"]:
        report(f"{known['heads']} attention heads cannot be divided into {known['groups']} groups")
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")
    if dtype not in DTYPES.values():
        report(f"`dtype` {dtype} is not supported; use one of {', '.join(DTYPES.values())}")
    norm_eps = _value(config, found, "norm_eps", known)
    if not isinstance(norm_eps, float | int):
        report(f"`{found.keys['norm_eps']}` is missing")
        norm_eps = 0
    model = Model(
        family=found.name,
        **known,
        norm_eps=float(norm_eps),
        rope=_rope(config, report) if found.is_rotary else None,
        tied=bool(config.get("tie_word_embeddings", found.tied)),
        dtype=dtype,
        settings=settings,
    )
    for what in found.refuse(config, model):
        report(what)
    if problems:
        raise UserError(problems)
    return model


def _family(config: Mapping[str, Any], where: str, wanted: str | None) -> Family:
    architectures = config.get("architectures") or []
    architecture = architectures[0] if architectures else f"model_type {config.get('model_type')!r}"
    known = list(registry.families(wanted))
    fitting = [
        family
        for family in known
        if architecture == family.architecture
        or (not architectures and config.get("model_type") == family.model_type)
    ]
    if not fitting:
        names = sorted({family.architecture for family in known})
        what = f"the architecture {architecture} is not supported; known: {', '.join(names)}"
        raise UserError([Problem(what, where, nearest(str(architecture), names))])
    named = [family for family in fitting if wanted in (None, family.name)]
    if not named:
        raise UserError(f"{where}: the model is {architecture}, not {wanted}")
    return named[0]


def _setting(config: Mapping[str, Any], setting: Setting, report: Callable[[str], None]) -> Any:
    value = config.get(setting.key, setting.default)
    if setting.values and value not in setting.values:
        known = " or ".join(map(repr, setting.values))
        report(f"`{setting.key}` is {value!r}; only {known} is supported")
    return setting.values.get(value, value)


def _value(config: Mapping[str, Any], family: Family, field: str, known: Mapping[str, Any]) -> Any:
    """Return the value of a size's key, or its default; None if there is neither."""
    defaults = {
        "groups": lambda known: known["heads"],
        "head_dim": lambda known: max(known["hidden"] // known["heads"], 1),
        **family.defaults,
    }
    value = config.get(family.keys.get(field, ""))
    return defaults[field](known) if value is None and field in defaults else value


def _sizes(config: Mapping[str, Any], family: Family, report: Callable[[str], None]) -> dict[str, int]:
    known: dict[str, int] = {}
    for field in _SIZES:
        if field in ("experts", "topk") and not family.has_experts:
            continue
        value = _value(config, family, field, known)
        if not isinstance(value, int) or value <= 0:
            key = family.keys[field]
            report(f"`{key}` is missing" if value is None else f"`{key}` is {value!r}, not a positive number")
            value = 1
        known[field] = value
    return known


def _rope(config: Mapping[str, Any], report: Callable[[str], None]) -> Rope:
    parameters = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = float(parameters.get("rope_theta", config.get("rope_theta", 10000.0)))
    if not theta.is_integer():
        report(f"`rope_theta` {theta} is not a whole number, but Megatron requires one")
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    factor = float(parameters.get("factor", 1.0))
    if kind == "default":
        return Rope(theta)
    if kind == "linear" and factor.is_integer():
        return Rope(theta, "linear", factor)
    if kind == "llama3":
        for name, value in _LLAMA3.items():
            if parameters.get(name) != value:
                found = parameters.get(name)
                report(f"`{name}` of the rotary scaling is {found!r}; only {value:g} is supported")
        return Rope(theta, "llama3", factor)
    report(f"rotary scaling {kind!r} with factor {factor:g} is not supported by Megatron")
    return Rope(theta)


def write_config(model: Model, special: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `config.json`; `special` holds the tokenizer's ids (`eos_token_id`, ...)."""
    family = registry.load(model.family)
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **{key: getattr(model, field) for field, key in family.keys.items()},
        **(_write_rope(model.rope) if model.rope else {}),
        "tie_word_embeddings": model.tied,
        "dtype": model.dtype,
        "torch_dtype": model.dtype,
        "use_cache": True,
        **family.config,
        **family.written,
        **{setting.key: _write_setting(setting, model) for setting in family.settings},
        **special,
    }


def _write_setting(setting: Setting, model: Model) -> Any:
    value = model.settings[setting.argument]
    return next((key for key, argument in setting.values.items() if argument == value), value)


def _write_rope(rope: Rope) -> dict[str, Any]:
    scaling: dict[str, Any] = {"rope_type": rope.scaling or "default"}
    if rope.scaling:
        scaling["factor"] = rope.factor
    if rope.scaling == "llama3":
        scaling |= _LLAMA3
    config = {"rope_theta": rope.theta, "rope_parameters": {"rope_theta": rope.theta, **scaling}}
    return {**config, "rope_scaling": scaling} if rope.scaling else config
