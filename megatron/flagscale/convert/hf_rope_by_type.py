"""Rotary positions per type of layer, as Gemma-3 has them in `config.json`. Standard library only.

Version 4 of transformers has `rope_theta` and `rope_scaling` for layers without a window, and
`rope_local_base_freq` for the others. Version 5 has an object per type of layer in `rope_parameters`, and
reads the older keys for values missing there (`Gemma3TextConfig.convert_rope_params_to_dict`, 5.19).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flagscale.errors import short
from megatron.flagscale.convert.hf_rope import Report, write_rope
from megatron.flagscale.convert.json_values import same
from megatron.flagscale.convert.model import Rope

LOCAL = "rope_local_base_freq"
_FULL, _WINDOW = "full_attention", "sliding_attention"
_PARAMETERS, _SCALING, _THETA, _TYPE = "rope_parameters", "rope_scaling", "rope_theta", "rope_type"


def usual_rope(config: Mapping[str, Any], report: Report) -> Mapping[str, Any]:
    """Return the keys with those of `full_attention` as in other families, and the other base as `LOCAL`."""
    parameters, scaling = config.get(_PARAMETERS), config.get(_SCALING)
    if isinstance(scaling, dict) and "type" in scaling and _TYPE not in scaling:
        what = f"`{_SCALING}` is {short(scaling)}, but transformers does not read `type` there"
        report(f"{what}: name the kind `{_TYPE}`")
    if parameters is None:
        return config
    if not isinstance(parameters, dict) or not {*parameters} <= {_FULL, _WINDOW}:
        report(f"`{_PARAMETERS}` is {short(parameters)}, not an object with {_FULL!r} and {_WINDOW!r}")
        return {name: value for name, value in config.items() if name != _PARAMETERS}
    parts = {name: parameters.get(name) or {} for name in (_FULL, _WINDOW)}
    if wrong := [name for name, part in parts.items() if not isinstance(part, dict)]:
        report(f"{wrong[0]!r} in `{_PARAMETERS}` is {short(parts[wrong[0]])}, not an object")
        return {name: value for name, value in config.items() if name != _PARAMETERS}
    window = {name: value for name, value in parts[_WINDOW].items() if value is not None}
    local = window.pop(_THETA, config.get(LOCAL))
    if not same(window.pop(_TYPE, "default"), "default") or window:
        what = f"{_WINDOW!r} in `{_PARAMETERS}` is {short(parts[_WINDOW])}"
        report(f"{what}; only `{_TYPE}` 'default' and a `{_THETA}` are supported")
    full = {**parts[_FULL], **(scaling if isinstance(scaling, dict) else {})}
    changed = {_PARAMETERS: full or None, _SCALING: None, **({LOCAL: local} if local is not None else {})}
    return {**config, **changed}


def write_rope_by_type(rope: Rope, local: float) -> dict[str, Any]:
    """Return `rope_parameters` of version 5; `local` is the base of layers with a window."""
    full = write_rope(rope)[_PARAMETERS]
    return {_FULL: full, _WINDOW: {_TYPE: "default", _THETA: local}}
