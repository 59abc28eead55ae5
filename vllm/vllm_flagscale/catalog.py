"""Print the arguments and models of the installed vLLM as JSON: `python -m vllm_flagscale.catalog`.

The control plane checks users' keys against a committed copy of this output, without importing the engine.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from flagscale.config.catalog import describe_actions, print_catalog

_LENGTHS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length"),
    *("max_target_positions", "max_sequence_length", "max_seq_length", "seq_len"),
)
"""Keys of `config.json` from which vLLM derives the longest sequence of a model."""


def build_catalog() -> dict[str, Any]:
    """Return the catalog that `flagscale.engines.vllm.catalog` reads.

    `arguments`: those of the server, as `describe_actions` describes them; `engine_arguments`: the names of
    those that an engine without a server has too; `sampling`: the fields of SamplingParams with the kinds of
    their values; `architectures`: the models that are known, including ours; `cpu_head_sizes`: the head sizes
    that attention on CPU supports; `length_keys`: the keys that limit the length of a sequence, and `lengths`
    their defaults; `layer_types`: the keys below which rotary positions may be given per type of layer.
    """
    import vllm
    from transformers.configuration_utils import ALLOWED_LAYER_TYPES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from vllm.engine.arg_utils import EngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.model_executor.models import ModelRegistry
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    from vllm_flagscale import register

    register()
    # If vLLM has no model of its own for an architecture, it runs that of transformers.
    known = {*ModelRegistry.get_supported_archs(), *_names_of(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)}
    engine = describe_actions(EngineArgs.add_cli_args(FlexibleArgumentParser())._actions)
    return {
        "engine": "vllm",
        "version": vllm.__version__.partition("+")[0],
        "arguments": describe_actions(make_arg_parser(FlexibleArgumentParser())._actions),
        "engine_arguments": sorted(engine),
        "sampling": sampling_fields(),
        "architectures": sorted(known),
        "cpu_head_sizes": CPUAttentionBackend.get_supported_head_sizes(),
        "length_keys": list(_LENGTHS),
        "lengths": default_lengths(),
        "layer_types": list(ALLOWED_LAYER_TYPES),
    }


def _names_of(mapping: Mapping[str, Any]) -> Iterator[str]:
    for names in mapping.values():
        yield from (names,) if isinstance(names, str) else names


def default_lengths() -> dict[str, dict[str, Any]]:
    """Return, by model type, the keys that limit the length of a sequence and have a default in its class.

    The value is the default, or the name of another key if the class takes this one as another name of that.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto as models

    text, images = models.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, models.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    keys = (*_LENGTHS, "sliding_window", "use_sliding_window")
    found = {}
    for model_type in sorted({*text, *images, "aquila"}):
        try:
            config = CONFIG_MAPPING[model_type]().get_text_config()
        except (StrictDataclassError, KeyError, TypeError, ValueError, AttributeError):
            continue  # no class, or one without defaults
        values = {key: getattr(config, key, None) for key in keys}
        aliases = {key: name for key, name in config.attribute_map.items() if {key, name} <= set(keys)}
        if known := {key: value for key, value in {**values, **aliases}.items() if value is not None}:
            found[model_type] = known
    return found


def sampling_fields() -> dict[str, dict[str, Any]]:
    """Return the public fields of SamplingParams: {"kinds": JSON types that a value may have}."""
    from vllm.sampling_params import SamplingParams

    hints = typing.get_type_hints(SamplingParams)
    return {
        name: {"kinds": sorted(_kinds(hints[name]))}
        for name in SamplingParams.__struct_fields__
        if not name.startswith("_") and _kinds(hints[name])
    }


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
