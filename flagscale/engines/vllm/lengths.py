"""The longest sequence that vLLM accepts for a model, from its configuration; vLLM is not imported.

As `vllm/config/model.py:_get_and_verify_max_len` of vLLM 0.32, with the configuration classes of transformers
5.19. `tests/worker/test_vllm_lengths.py` compares the two.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from math import inf
from pathlib import Path
from typing import Any

from flagscale.checks.model_folder import mapping_of
from flagscale.config.schema import Environment
from flagscale.engines.vllm.catalog import vllm_catalog
from flagscale.engines.vllm.precision import is_pooling
from flagscale.values import Host

ANY_LENGTH = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
"""The environment variable with which vLLM accepts every length."""
_NOT_STRETCHED = (
    "su",
    "longrope",
    "llama3",
    "yarn",
    "telechat3-yarn",
    "deepseek_yarn",
    "deepseek_llama_scaling",
)
"""Kinds of rotary scaling whose factor vLLM does not apply: their configured length includes it already."""
_OTHER_PARTS = ("thinker_config", "llm_config", "language_config", "decoder", "generator")
"""Keys below which the language model of some models is described; there, the longest sequence is unknown."""
_SENTENCES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)


def allows_any_length(env: Mapping[str, str]) -> bool:
    """Return whether vLLM accepts every length in an environment."""
    return str(env.get(ANY_LENGTH, "0")).strip().lower() in ("1", "true")


def may_exceed(envs: Environment, hosts: Iterable[Host]) -> bool:
    """Return whether vLLM accepts every length on a host; this machine's own environment may reach it."""
    return any(allows_any_length({**os.environ, **envs.on_host(host.name, host.platform)}) for host in hosts)


def too_long(values: Mapping[str, Any], config: Mapping[str, Any], folder: Path) -> str:
    """Return why vLLM refuses the `max_model_len` in its arguments; "" if it does not, or if that is unknown.

    `config` is the content of the folder's `config.json`.
    """
    wanted, settings = values.get("max_model_len"), _settings(config, values.get("hf_overrides"))
    if type(wanted) is not int or settings is None:
        return ""
    longest, source = _longest(values, config, folder, settings)
    own = settings.get("model_max_length")
    if wanted <= longest or (isinstance(own, int) and wanted <= own):
        return ""
    kept = next((kind for one in _rotary(settings) if (kind := _kind(one)) in _NOT_STRETCHED), "")
    note = f"; its rotary scaling `{kept}` does not extend that" if kept else ""
    return f"the model supports sequences of at most {longest:g} tokens ({source}), not {wanted}{note}"


def default_length(values: Mapping[str, Any], config: Mapping[str, Any], folder: Path) -> int | None:
    """Return the length that vLLM takes if `max_model_len` is not given, or `auto`; None if unknown."""
    settings = _settings(config, values.get("hf_overrides"))
    if settings is None or any(_kind(one) in ("su", "longrope") for one in _rotary(settings)):
        return None
    longest, _ = _longest(values, config, folder, settings)
    return None if longest == inf else int(longest)


def _longest(
    values: Mapping[str, Any], config: Mapping[str, Any], folder: Path, settings: Mapping[str, Any]
) -> tuple[float, str]:
    """Return the longest sequence, and where it comes from; infinity if nothing limits it."""
    longest, key = _derived(settings, has_windows=not values.get("disable_sliding_window"))
    if is_pooling(config, values.get("runner")) and settings.get("position_embedding_type") == "absolute":
        limit = _read(folder / "tokenizer_config.json").get("model_max_length")
        longest = min(longest, limit) if isinstance(limit, int | float) else longest
    if longest == inf:
        return longest, ""
    if (encoder := _sentence_length(folder)) is not None:
        return encoder, "max_seq_length of sentence-transformers"
    factor = _factor([*_rotary(settings)]) if "gemma3" not in str(settings.get("model_type")) else 1.0
    return longest * factor, f"{key}, scaled by {factor:g}" if factor != 1 else key


def _settings(config: Mapping[str, Any], overridden: Any) -> dict[str, Any] | None:
    """Return the settings of the language model, with the defaults of its class; None if unknown."""
    overrides = mapping_of(overridden)
    text = config.get("text_config")
    if not isinstance(text, Mapping):
        if any(isinstance(config.get(part), Mapping) for part in _OTHER_PARTS):
            return None
        text = config
    if config.get("model_type") == "moss_audio":
        return None
    of_text = mapping_of(overrides.get("text_config")) if text is not config else overrides
    model_type = text.get("model_type") or config.get("model_type")
    defaults = vllm_catalog().lengths.get(str(model_type), {})
    aliases = {key: name for key, name in defaults.items() if isinstance(name, str)}
    given: dict[str, Any] = {"model_type": model_type, **defaults}
    for key, value in {**text, **of_text}.items():
        given[aliases.get(key, key)] = value
    old = of_text.get("rope_scaling") or text.get("rope_scaling")
    if old and "rope_parameters" not in of_text:
        given["rope_parameters"] = old  # the old key wins over the new one
    return {key: value for key, value in given.items() if key not in aliases}


def _derived(settings: Mapping[str, Any], has_windows: bool) -> tuple[float, str]:
    """Return the smallest of the lengths, before rotary scaling, and its key."""
    known = {key: settings[key] for key in vllm_catalog().length_keys if isinstance(settings.get(key), int)}
    key = min(known, key=known.__getitem__, default="")
    if known.get("model_max_length"):
        key = "model_max_length"
    window = settings.get("sliding_window") if settings.get("use_sliding_window", True) else None
    if not has_windows and isinstance(window, int) and 0 < window < known.get(key, inf):
        return window, "sliding_window"
    return known.get(key, inf), key


def _rotary(settings: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the parameters of rotary positions: one mapping, or one per type of layer."""
    found = settings.get("rope_parameters")
    if isinstance(found, Mapping) and found:
        nested = set(found) <= set(vllm_catalog().layer_types)
        yield from (one for one in found.values() if isinstance(one, Mapping) and one) if nested else (found,)


def _kind(parameters: Mapping[str, Any]) -> str:
    return str(parameters.get("rope_type") or parameters.get("type") or "default")


def _factor(kinds: list[Mapping[str, Any]]) -> float:
    factor: Any = 1.0
    for parameters in kinds:
        if _kind(parameters) not in _NOT_STRETCHED:
            factor = parameters.get("factor", factor)
    return float(factor) if isinstance(factor, int | float) else 1.0


def _sentence_length(folder: Path) -> int | None:
    """Return the limit of a model in the format of sentence-transformers; None if it has none."""
    found = next(filter(None, (_read(folder / name) for name in _SENTENCES)), {})
    limit = found.get("max_seq_length")
    return limit if isinstance(limit, int) else None


def _read(path: Path) -> Mapping[str, Any]:
    try:
        return mapping_of(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return {}
