"""The arguments of one model: secrets, which are not passed on as they are, and rules for the others."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from flagscale import registry
from flagscale.checks.model_folder import (
    folder_violations,
    has_mistrals_config,
    misspelt_architecture,
    read_config,
)
from flagscale.config.catalog import Catalog
from flagscale.config.certain import certain_violations
from flagscale.config.engine_args import EngineArguments, FlatKey, flatten
from flagscale.config.source_map import SourceMap
from flagscale.engines.vllm.adapters import adapter_violations
from flagscale.engines.vllm.catalog import vllm_catalog
from flagscale.engines.vllm.emu3_model import emu3_violations
from flagscale.engines.vllm.generation import generation_remarks, generation_violations
from flagscale.engines.vllm.lengths import ANY_LENGTH, default_length, too_long
from flagscale.engines.vllm.pictures import limit_violations, picture_remarks, tower_violations
from flagscale.engines.vllm.precision import is_pooling, lowered_precision
from flagscale.engines.vllm.refused import REMOVED
from flagscale.engines.vllm.rules import engine_violations
from flagscale.errors import Problem, Violation

KEY_FILE = "api_key_file"
SECRETS = {"api_key": "VLLM_API_KEY", "hf_token": "HF_TOKEN"}
"""Key -> the environment variable in which vLLM, or the hub's client, looks for it."""
DEGREES = ("tensor_parallel_size", "pipeline_parallel_size", "prefill_context_parallel_size")


def flat(
    path: str, keys: Mapping[str, Any], catalog: Catalog, source_map: SourceMap, problems: list[Problem]
) -> list[FlatKey]:
    """Return the flat keys below a group; a mapping is a value if the engine has such an argument."""

    def takes_mapping(name: str) -> bool:
        option = catalog.by_name.get(name)
        if name in REMOVED:
            return True
        return option is not None and option.kind == "value" and option.type not in ("int", "float")

    return flatten(path, keys, takes_mapping, source_map, problems)


def take_secrets(
    flat_keys: list[FlatKey], source_map: SourceMap, problems: list[Problem]
) -> tuple[list[FlatKey], dict[str, str]]:
    """Return the flat keys that are not secrets, and the environment variables of those that are."""
    secrets: dict[str, str] = {}
    kept = []
    for flat_key in flat_keys:
        if flat_key.name not in (*SECRETS, KEY_FILE):
            kept.append(flat_key)
        elif flat_key.value is not None:
            name = SECRETS.get(flat_key.name, SECRETS["api_key"])
            try:
                text = source_map.text(flat_key.path, flat_key.value) or flat_key.value
                text = _read_key(str(text)) if flat_key.name == KEY_FILE else text
                if not isinstance(text, str) or not text:
                    raise ValueError(f"`{flat_key.name}` takes one non-empty text")
                if name in secrets:
                    raise ValueError(f"give `api_key` or `{KEY_FILE}`, not both")
                secrets[name] = text
            except ValueError as error:
                problems.append(Problem(str(error), source_map.where(flat_key.path)))
    return kept, secrets


def _read_key(path: str) -> str:
    """Return the key in a file; raises ValueError if it contains no key."""
    try:
        key = Path(path).expanduser().read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file") from None
    if not key:
        raise ValueError(f"{path}: contains no key")
    return key


def devices_of(values: Mapping[str, Any]) -> int:
    """Return how many devices one data parallel rank of an engine uses."""
    return prod(int(values[name]) for name in DEGREES)


_PATHS = ("chat_template", "ssl_keyfile", "ssl_certfile", "ssl_ca_certs")
_OTHER_MODEL = ("hf_overrides", "model_impl", "runner", "convert")
"""Arguments that make the engine read a folder as another model than its configuration names."""


def violations(
    values: Mapping[str, Any], is_host_processor: bool, given: Mapping[str, str], any_length: bool = False
) -> Iterator[Violation]:
    """Yield every violation in one model's arguments, by dest.

    `is_host_processor`: whether the model is served by the host's own processors; `given` holds the arguments
    that the user wrote; `any_length`: whether vLLM accepts sequences longer than the model's.
    """
    if "model" not in given:
        yield "model", "a model is required here: its folder, or its name on a model hub"
        return
    yield from folder_violations(values)
    yield from adapter_violations(values)
    yield from emu3_violations(values)
    yield from generation_violations(values)
    yield from limit_violations(values)
    for name in _PATHS:
        value = values.get(name)
        is_path = isinstance(value, str) and value.startswith(("/", "./", "../"))
        if is_path and not os.path.exists(str(value)):
            yield name, f"{value}: no such file"
    yield from engine_violations(values, given, _default_length(values))
    if not any_length and (what := _length(values)):
        yield "max_model_len", what
    config = config_of(values)
    if config is None or "hf_overrides" in given:
        return
    heads, tensor = config.get("num_attention_heads"), values["tensor_parallel_size"]
    if isinstance(heads, int) and heads % tensor:
        yield (
            "tensor_parallel_size",
            f"the model's {heads} attention heads cannot be divided evenly by {tensor}",
        )
    layers, stages = config.get("num_hidden_layers"), values["pipeline_parallel_size"]
    if isinstance(layers, int) and layers < stages:
        yield "pipeline_parallel_size", f"the model has only {layers} layers for {stages} pipeline stages"
    yield from tower_violations(values, _own_config(values) or {})
    yield from _architecture_violations(config, given)
    if is_host_processor:
        yield from _cpu_violations(config)


def broken_rules(
    arguments: EngineArguments, is_host_processor: bool, any_length: bool = False
) -> list[Violation]:
    """Return the violations in one model's arguments that hold whatever its mistakes are meant to be."""
    if not arguments.is_complete:
        return []
    given = {**dict.fromkeys(arguments.unknown, ""), **arguments.paths}
    return certain_violations(
        lambda values: violations(values, is_host_processor, given, any_length),
        arguments.values,
        arguments.unknown,
    )


def remarks(
    values: Mapping[str, Any],
    given: Mapping[str, str],
    is_host_processor: bool,
    any_length: bool = False,
    sampling: Mapping[str, Any] | None = None,
) -> Iterator[Violation]:
    """Yield settings that are valid, but may not be intended.

    `sampling` is that of a batch; see `violations` for the other arguments.
    """
    if values.get("trust_remote_code") and "trust_remote_code" in given:
        yield "trust_remote_code", "code that comes with the model runs with your permissions"
    if any_length and (what := _length(values)):
        yield "max_model_len", f"{what}; {ANY_LENGTH} accepts it, and answers may be wrong beyond that"
    config = _own_config(values)
    if config is not None:
        folder, dtype = Path(str(values["model"])), str(values.get("dtype"))
        pools = is_pooling(config, values.get("runner"))
        if what := lowered_precision(dtype, config, folder, on_host=is_host_processor, pools=pools):
            yield "dtype", what
        yield from picture_remarks(values, config)
    yield from generation_remarks(values, sampling)


def _length(values: Mapping[str, Any]) -> str:
    config = _own_config(values)
    return "" if config is None else too_long(values, config, Path(str(values["model"])))


def _default_length(values: Mapping[str, Any]) -> int | None:
    config = _own_config(values)
    return None if config is None else default_length(values, config, Path(str(values["model"])))


def _own_config(values: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the folder's `config.json`; None if there is none, or if the engine reads another file."""
    folder = Path(str(values["model"]))
    if values.get("hf_config_path") or has_mistrals_config(folder):
        return None
    try:
        return read_config(folder)
    except ValueError:
        return None  # already reported


def config_of(values: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the folder's configuration, updated by its text model's; None as for `_own_config`."""
    config = _own_config(values)
    if config is None:
        return None
    text = config.get("text_config")
    own = {name: config[name] for name in ("architectures", "auto_map") if name in config}
    return {**config, **text, **own} if isinstance(text, dict) else config


def _architecture_violations(config: Mapping[str, Any], given: Mapping[str, str]) -> Iterator[Violation]:
    named = [str(one) for one in config.get("architectures") or ()]
    if config.get("auto_map") or any(name in given for name in _OTHER_MODEL):
        return
    known = vllm_catalog().architectures
    if named and not any(one in known or registry.is_known("vllm_architectures", one) for one in named):
        hint = misspelt_architecture(named[0], known)
        what = f"vLLM does not support its architecture `{named[0]}`{f' ({hint})' if hint else ''}"
        yield "model", f"{what}; a vLLM plugin that adds it must list it in `flagscale.vllm_architectures`"


def _cpu_violations(config: Mapping[str, Any]) -> Iterator[Violation]:
    latent, rotary = (config.get(name) for name in ("kv_lora_rank", "qk_rope_head_dim"))
    if isinstance(latent, int) and isinstance(rotary, int):
        if latent + rotary not in (widths := vllm_catalog().cpu_latent_sizes):
            what = f"kv_lora_rank {latent} + qk_rope_head_dim {rotary} is not supported by vLLM on CPU"
            yield "model", f"{what} (supported: {', '.join(map(str, widths))}, as published: 512 + 64)"
        return
    heads, hidden, size = (config.get(name) for name in ("num_attention_heads", "hidden_size", "head_dim"))
    if size is None and isinstance(heads, int) and isinstance(hidden, int) and heads:
        size = hidden // heads
    sizes = vllm_catalog().cpu_head_sizes
    if isinstance(size, int) and size not in sizes:
        listed = ", ".join(map(str, sizes))
        yield "model", f"its attention head size {size} is not supported by vLLM on CPU (supported: {listed})"
