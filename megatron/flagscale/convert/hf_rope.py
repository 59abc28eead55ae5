"""Read and write the rotary positions of a `config.json`, as transformers 5.19 and vLLM 0.32 read them.

Version 4 of transformers has `rope_theta` and `rope_scaling`, version 5 has `rope_parameters`; both forms are
written. A file may hold all three keys. Then both readers use `rope_scaling` as a whole unless it is empty,
and otherwise `rope_parameters`. Only what is missing there comes from the keys beside it, or else from the
configuration class (`RotaryEmbeddingConfigMixin.convert_rope_params_to_dict`). Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from flagscale.errors import closest, short
from megatron.flagscale.convert.json_values import is_positive, is_size, same
from megatron.flagscale.convert.model import Rope, Yarn

PARTIAL, _THETA, _ORIGINAL = "partial_rotary_factor", "rope_theta", "original_max_position_embeddings"
_POSITIONS = "max_position_embeddings"
_FILE = "config.json"
_SCALING, _PARAMETERS = "rope_scaling", "rope_parameters"
ROPE_KEYS = (_SCALING, _PARAMETERS, _THETA, PARTIAL, _ORIGINAL)
"""Keys of `config.json` that hold rotary positions."""

DYNAMIC = "dynamic"
"""Stretches the positions of a sequence that is longer than `max_position_embeddings`, by its length.
Megatron does not have this kind, and trains no such sequence. Shorter ones have no scaling in transformers
(`_compute_dynamic_ntk_parameters`) and vLLM (`DynamicNTKScalingRotaryEmbedding`)."""
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, _ORIGINAL: 8192}
_YARN = {"beta_fast": 32.0, "beta_slow": 1.0, "mscale": None, "mscale_all_dim": None, "truncate": True}
"""Keys of YaRN, with the values that transformers and vLLM give missing ones."""
_KINDS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", *_LLAMA3),
    "yarn": ("factor", _ORIGINAL, *_YARN),
    DYNAMIC: ("factor",),
}
"""Kinds of scaling that can be read, with their keys."""

Report = Callable[[str], None]


def rope_values(config: Mapping[str, Any], defaults: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """Return the rotary positions that a file describes, with all missing values filled in.

    The keys are those of `rope_parameters`. `defaults` are those of the configuration class.
    """
    groups = {}
    for name in (_SCALING, _PARAMETERS):
        groups[name] = config.get(name)
        if groups[name] is not None and not isinstance(groups[name], dict):
            report(f"`{name}` is {short(groups[name])}, not an object")
            groups[name] = None
    own = {name: value for name, value in (defaults.get(_PARAMETERS) or {}).items() if name != _THETA}
    values = dict(groups[_SCALING] or groups[_PARAMETERS] or own)
    for name in (_THETA, PARTIAL):
        value = config.get(name, defaults.get(name))
        if value is not None or name in config:
            values.setdefault(name, value)
    if "type" in values:
        kind = values.pop("type")
        if values.setdefault("rope_type", kind) != kind:
            what = "transformers reads the first, and vLLM refuses the file"
            report(
                f"`rope_type` is {short(values['rope_type'])}, but `type` beside it is {short(kind)}: {what}"
            )
    values.setdefault("rope_type", "default")
    if values["rope_type"] in ("llama3", "yarn"):
        positions = config.get(_POSITIONS, defaults.get(_POSITIONS))
        within = values.setdefault(_ORIGINAL, positions)
        beside = config.get(_ORIGINAL, within)
        if beside != within:
            what = (
                f"`{_ORIGINAL}` is {short(within)} in the rotary positions, but {short(beside)} beside them"
            )
            report(f"{what}: transformers reads the first, and vLLM the second")
    return values


def read_rope(
    values: Mapping[str, Any], scalings: Sequence[str], report: Report, is_latent: bool = False
) -> Rope:
    """Return the rotary positions of `rope_values`; reports whatever Megatron cannot compute.

    Args:
        scalings: the kinds of scaling that it computes in the family.
        is_latent: whether the family has multi-latent attention.
    """
    theta = values.get(_THETA)
    if theta is None:
        report(f"`{_THETA}` is missing or null")
    elif not is_positive(theta):
        report(f"`{_THETA}` is {short(theta)}, not a positive number")
    elif not float(theta).is_integer():
        report(f"`{_THETA}` {theta} is not a whole number, but Megatron requires one")
    theta = float(theta) if is_positive(theta) else 1.0
    kind, factor = values["rope_type"], values.get("factor")
    if kind not in ("default", *scalings):
        report(
            f"rotary scaling {short(kind)} is not supported; use one of {', '.join(('default', *scalings))}"
        )
        return Rope(theta)
    known = (_THETA, PARTIAL, "rope_type", *_KINDS[kind])
    for name, value in values.items():
        if name not in known and value is not None:
            close = closest(name, known)
            hint = f"; did you mean `{close}`?" if close else ""
            what = f"`{name}` of the rotary positions is {short(value)}"
            report(f"{what}, which the kind {kind!r} does not have{hint}")
    if kind == "default":
        return Rope(theta)
    if not is_positive(factor):
        found = "missing" if factor is None else f"{short(factor)}, not a positive number"
        report(f"`factor` of the rotary positions is {found}")
        return Rope(theta)
    if kind == DYNAMIC:
        return Rope(theta)
    factor = float(factor)
    if kind == "linear" and not factor.is_integer():
        report(f"the linear rotary scaling has factor {factor:g}, but Megatron requires a whole number")
    if kind == "llama3":
        for name, value in _LLAMA3.items():
            if not same(values.get(name), value):
                found = short(values.get(name))
                report(f"`{name}` of the rotary scaling is {found}; only {value:g} is supported")
    return Rope(theta, kind, factor, _read_yarn(values, is_latent, report) if kind == "yarn" else None)


def scaling_left_out(config: Mapping[str, Any], positions: int) -> tuple[str, ...]:
    """Return a notice if Megatron does not keep the scaling of a `config.json` that was read."""
    values = config.get(_SCALING) or config.get(_PARAMETERS) or {}
    if DYNAMIC not in (values.get("rope_type"), values.get("type")):
        return ()
    what = f"the rotary scaling '{DYNAMIC}' is left out: it changes only sequences longer than {positions}"
    how = f"which Megatron does not train; for them, copy it into the exported {_FILE}"
    return (f"{what} (`{_POSITIONS}`), {how}",)


def _read_yarn(values: Mapping[str, Any], is_latent: bool, report: Report) -> Yarn:
    given = {name: default if values.get(name) is None else values[name] for name, default in _YARN.items()}
    wrong = {name for name in ("beta_fast", "beta_slow") if not is_positive(given[name])}
    wrong |= {name for name in ("mscale", "mscale_all_dim") if not _is_scale(given[name])}
    for name in sorted(wrong):
        report(f"`{name}` of the rotary scaling is {short(given[name])}, not a positive number")
    if not is_size(values.get(_ORIGINAL)):
        report(
            f"`{_ORIGINAL}` of the rotary scaling is {short(values.get(_ORIGINAL))}, not a positive number"
        )
        wrong.add(_ORIGINAL)
    if not same(given["truncate"], True) and (is_latent or not same(given["truncate"], False)):
        only = "only True is supported" if is_latent else "it must be true or false"
        report(f"`truncate` of the rotary scaling is {short(given['truncate'])}; {only}")
    if wrong:
        return Yarn()
    mscale, all_dim = given["mscale"] or 1.0, given["mscale_all_dim"] or 0.0
    # Without both of them, cosines and sines are scaled as with mscale 1 alone. The logits of the attention
    # are scaled by mscale_all_dim in any case.
    if bool(given["mscale"]) != bool(given["mscale_all_dim"]) and (mscale, all_dim) != (1.0, 0.0):
        found = ", ".join(f"{name} {short(values.get(name))}" for name in ("mscale", "mscale_all_dim"))
        report(f"the rotary scaling has {found}: only both or none, or mscale 1, are supported")
    elif not is_latent and (mscale, all_dim) != (1.0, 0.0):
        what = f"the rotary scaling has mscale {short(mscale)} and mscale_all_dim {short(all_dim)}"
        report(f"{what}: only DeepSeek's families can have other values than 1 and 0")
    fast, slow = float(given["beta_fast"] or 0), float(given["beta_slow"] or 0)
    return Yarn(values[_ORIGINAL], fast, slow, float(mscale), float(all_dim), given["truncate"] is not False)


def _is_scale(value: Any) -> bool:
    return value is None or same(value, 0) or same(value, 0.0) or is_positive(value)


def write_rope(rope: Rope) -> dict[str, Any]:
    """Return the keys of `config.json` for all versions of transformers."""
    scaling: dict[str, Any] = {"rope_type": rope.scaling or "default"}
    if rope.scaling:
        scaling["factor"] = rope.factor
    if rope.scaling == "llama3":
        scaling |= _LLAMA3
    if rope.yarn:
        yarn = asdict(rope.yarn)
        if yarn["truncate"]:
            del yarn["truncate"]  # the usual value, which vLLM does not read in every family
        scaling |= {_ORIGINAL: yarn.pop("original"), **yarn}
    config = {_THETA: rope.theta, _PARAMETERS: {_THETA: rope.theta, **scaling}}
    return {**config, _SCALING: scaling} if rope.scaling else config
