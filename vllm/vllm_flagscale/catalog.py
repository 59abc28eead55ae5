"""Print the arguments and models of the installed vLLM as JSON: `python -m vllm_flagscale.catalog`.

The control plane checks users' keys against a committed copy of this output, without importing the engine.
"""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from vllm.engine.arg_utils import EngineArgs

from flagscale.config.bounds import types_of
from flagscale.config.catalog import describe_actions, print_catalog
from vllm_flagscale.bounds import declared, tried, with_holes
from vllm_flagscale.lengths import LENGTH_KEYS, default_lengths
from vllm_flagscale.probes import Accepts, engine_probe, model_folder, sampling_probe, server_probe, silent


def build_catalog() -> dict[str, Any]:
    """Return the catalog that `flagscale.engines.vllm.catalog` reads.

    `arguments`: those of the server, as `describe_actions` describes them, with the `bounds` of their values;
    `engine_arguments`: the names of those that an engine without a server has too; `sampling`: the fields of
    SamplingParams with the kinds of their values and their bounds; `architectures`: the models that are
    known, including ours; `cpu_head_sizes` and `cpu_latent_sizes`: the widths that attention on CPU
    supports, of a head and of MLA's latents; `length_keys`: the keys that limit the length of a sequence, and
    `lengths` their defaults; `layer_types`: the keys below which rotary positions may be given per type of
    layer.
    """
    from vllm_flagscale import register

    register()
    with silent():
        return _catalog()


def _catalog() -> dict[str, Any]:
    import vllm
    from transformers.configuration_utils import ALLOWED_LAYER_TYPES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.model_executor.models import ModelRegistry
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
    from vllm.v1.attention.backends.mla.cpu_mla import CPUMLABackend

    server = make_arg_parser(FlexibleArgumentParser())
    # If vLLM has no model of its own for an architecture, it runs that of transformers.
    known = {*ModelRegistry.get_supported_archs(), *_names_of(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)}
    engine = describe_actions(EngineArgs.add_cli_args(FlexibleArgumentParser())._actions)
    return {
        "engine": "vllm",
        "version": vllm.__version__.partition("+")[0],
        "arguments": _with_bounds(describe_actions(server._actions), server),
        "engine_arguments": sorted(engine),
        "sampling": sampling_fields(),
        "architectures": sorted(known),
        "cpu_head_sizes": CPUAttentionBackend.get_supported_head_sizes(),
        "cpu_latent_sizes": CPUMLABackend.get_supported_head_sizes(),
        "length_keys": list(LENGTH_KEYS),
        "lengths": default_lengths(),
        "layer_types": list(ALLOWED_LAYER_TYPES),
    }


def _names_of(mapping: Mapping[str, Any]) -> Iterator[str]:
    for names in mapping.values():
        yield from (names,) if isinstance(names, str) else names


_ELSEWHERE = {
    "spec_tokens": ("speculative_config", "num_speculative_tokens"),
    "mamba_cache_philox_rounds": ("mamba_config", "stochastic_rounding_philox_rounds"),
    "cpu_offload_gb": ("offload_config", "uva", "cpu_offload_gb"),
    "limit_mm_per_prompt": ("model_config", "limit_mm_per_prompt"),
    **{
        f"offload_{name}": ("offload_config", "prefetch", f"offload_{name}")
        for name in ("group_size", "num_in_group", "prefetch_step")
    },
}
"""Arguments whose field has another name, or is in another class, than the parser's group says."""
_WITH_DASHES = ("speculative_config",)
"""Arguments in whose keys vLLM reads `-` as `_`."""


def _with_bounds(arguments: dict[str, dict[str, Any]], parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Add `bounds` to the arguments whose values have some: declared by their class, or found by trying."""
    import vllm.config

    whole = declared(vllm.config.VllmConfig)
    parsed = parser.parse_args([])
    of_engine = {field.name for field in dataclasses.fields(EngineArgs)}
    with model_folder() as folder:
        for group in parser._action_groups:
            cls = getattr(vllm.config, str(group.title), None)
            own = declared(cls)["properties"] if dataclasses.is_dataclass(cls) else {}
            fields = {**whole["properties"], **own}
            for action in group._group_actions:
                names = [name.removeprefix("--") for name in action.option_strings]
                described = [arguments[name] for name in names if name in arguments]
                if not described:
                    continue
                found = _field(whole, _ELSEWHERE.get(action.dest)) or fields.get(action.dest, {})
                bounds = _useful(found, described[0]["type"])
                if _is_number(described[0]) and "enum" not in bounds:
                    is_engine = action.dest in of_engine
                    probe = (
                        engine_probe(action.dest, folder) if is_engine else server_probe(action.dest, parsed)
                    )
                    bounds = _tried(bounds, probe, described[0])
                if action.dest in _WITH_DASHES:
                    bounds = {**bounds, "dashes": True}
                for one in described:
                    one.update({"bounds": bounds} if bounds else {})
                    if one["type"] == "str" and types_of(bounds) == ("integer",):
                        one["type"] = "int"  # the parser takes any text, and the class reads the number in it
    return arguments


def _field(bounds: Mapping[str, Any], path: tuple[str, ...] | None) -> Mapping[str, Any]:
    """Return the bounds of the field at this path; {} without a path."""
    for name in path or ():
        bounds = bounds["properties"][name]
    return bounds if path else {}


_LIMITS = {"minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "not"}


def _useful(bounds: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return the bounds if they say more than the parser, whose type is `kind`.

    That is a range, whole numbers to choose from, keys, or the form of a value that the parser takes as JSON.
    """
    says_more = {*_LIMITS, "properties", "required"} & set(bounds) or isinstance(
        bounds.get("additionalProperties"), dict
    )
    says_more = says_more or (kind == "loads" and bool(bounds))
    return dict(bounds) if says_more or ("enum" in bounds and "integer" in types_of(bounds)) else {}


def _is_number(described: Mapping[str, Any]) -> bool:
    kind = described["type"]
    return described["nargs"] is None and (kind in ("int", "float") or "human" in kind)


def _tried(bounds: dict[str, Any], probe: Accepts, described: Mapping[str, Any]) -> dict[str, Any]:
    """Return the bounds with what trying adds: the ends of a range that is not declared, and holes in it."""
    whole = described["type"] != "float"
    candidates = (described["default"], 1, 8, 0)
    inside = next((one for one in candidates if isinstance(one, int | float) and probe(one)), None)
    if inside is None:
        return bounds
    if not _LIMITS & set(bounds):
        bounds = tried(probe, inside, whole, ends=2 if described["dest"] == "seed" else 1)
    return with_holes(bounds, probe) if whole and bounds else bounds


def sampling_fields() -> dict[str, dict[str, Any]]:
    """Return the public fields of SamplingParams: {"kinds": JSON types of their values, "bounds": if any}."""
    from vllm.sampling_params import SamplingParams

    hints = typing.get_type_hints(SamplingParams)
    fields: dict[str, dict[str, Any]] = {}
    for name in SamplingParams.__struct_fields__:
        if not name.startswith("_") and (kinds := sorted(_kinds(hints[name]))):
            fields[name] = {"kinds": kinds}
            if bounds := _sampling_bounds(name, hints[name], kinds):
                fields[name]["bounds"] = bounds
    return fields


def _sampling_bounds(name: str, hint: Any, kinds: list[str]) -> dict[str, Any]:
    for cls in typing.get_args(hint):
        if dataclasses.is_dataclass(cls):
            return {**declared(cls), "additionalProperties": False}
    probe = sampling_probe(name)
    if kinds in (["int"], ["float"]) and (inside := next(filter(probe, (1, 0)), None)) is not None:
        return tried(probe, inside, whole=kinds == ["int"])
    return {}


_JSON: dict[Any, str] = {bool: "bool", int: "int", float: "float", str: "str", list: "list", dict: "dict"}


def _kinds(hint: Any) -> set[str]:
    """Return the JSON types that a type hint allows; empty if a configuration cannot hold such a value."""
    origin = typing.get_origin(hint)
    if origin is typing.Annotated:
        return _kinds(typing.get_args(hint)[0])
    if origin in (typing.Union, types.UnionType):
        return set().union(*map(_kinds, typing.get_args(hint)))
    if dataclasses.is_dataclass(hint):
        return {"dict"}
    known = _JSON.get(origin or hint)
    return {known} if known else set()


if __name__ == "__main__":
    print_catalog(build_catalog)
