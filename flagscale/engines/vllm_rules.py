"""What vLLM, or the model folder, would have against arguments: told before anything starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flagscale.engines.vllm_catalog import vllm_catalog
from flagscale.engines.vllm_keys import degree_findings
from flagscale.errors import nearest
from flagscale.inputs.model_folder import folder_findings, read_config
from flagscale.parallel.finding import Finding

_PATHS = ("chat_template", "ssl_keyfile", "ssl_certfile", "ssl_ca_certs")
_OTHER_MODEL = ("hf_overrides", "model_impl", "runner", "convert")
"""Arguments by which the engine takes a folder for another model than its configuration says."""


def findings(values: Mapping[str, Any], platform: str, given: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what is wrong with one model's arguments, by dest; `given` holds those that the user wrote."""
    if "model" not in given:
        yield "model", "a model is required here: its folder, or its name on a model hub"
        return
    yield from folder_findings(values)
    for name in _PATHS:
        value = values.get(name)
        is_path = isinstance(value, str) and value.startswith(("/", "./", "../"))
        if is_path and not Path(str(value)).exists():
            yield name, f"{value}: no such file"
    wrong = list(degree_findings(values))
    yield from wrong
    config = _config(values)
    if wrong or config is None or "hf_overrides" in given:
        return
    heads, tensor = config.get("num_attention_heads"), values["tensor_parallel_size"]
    if isinstance(heads, int) and heads % tensor:
        yield "tensor_parallel_size", f"the model's {heads} attention heads cannot be cut into {tensor}"
    layers, stages = config.get("num_hidden_layers"), values["pipeline_parallel_size"]
    if isinstance(layers, int) and layers < stages:
        yield "pipeline_parallel_size", f"the model has {layers} layers for {stages} pipeline stages"
    longest, wanted = config.get("max_position_embeddings"), values.get("max_model_len")
    if isinstance(longest, int) and isinstance(wanted, int) and wanted > longest and not _stretches(config):
        yield "max_model_len", f"the model's longest sequence has {longest} tokens, not {wanted}"
    yield from _architecture_findings(config, given)
    if platform == "cpu":
        yield from _cpu_findings(config)


def remarks(values: Mapping[str, Any], given: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what is not wrong, but may not be meant."""
    if values.get("trust_remote_code") and "trust_remote_code" in given:
        yield "trust_remote_code", "code that comes with the model runs with your rights"


def _config(values: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the folder's configuration, that of its text model on top; None for a name on a hub."""
    try:
        config = read_config(Path(str(values["model"])))
    except ValueError:
        return None  # told already
    text = config.get("text_config")
    own = {name: config[name] for name in ("architectures", "auto_map") if name in config}
    return {**config, **text, **own} if isinstance(text, dict) else config


def _stretches(config: Mapping[str, Any]) -> bool:
    """Whether rotary positions are scaled to longer sequences than the model was trained on."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    return kind != "default"


def _architecture_findings(config: Mapping[str, Any], given: Mapping[str, str]) -> Iterator[Finding]:
    known = vllm_catalog().architectures
    named = [str(one) for one in config.get("architectures") or ()]
    if config.get("auto_map") or any(name in given for name in _OTHER_MODEL):
        return
    if named and not any(one in known for one in named):
        hint = nearest(named[0], known)
        yield "model", f"vLLM does not know its architecture `{named[0]}`{f' ({hint})' if hint else ''}"


def _cpu_findings(config: Mapping[str, Any]) -> Iterator[Finding]:
    heads, hidden, size = (config.get(name) for name in ("num_attention_heads", "hidden_size", "head_dim"))
    if size is None and isinstance(heads, int) and isinstance(hidden, int) and heads:
        size = hidden // heads
    sizes = vllm_catalog().cpu_head_sizes
    if isinstance(size, int) and size not in sizes:
        listed = ", ".join(map(str, sizes))
        yield "model", f"its attention heads of {size} are none that vLLM can do on processors ({listed})"
