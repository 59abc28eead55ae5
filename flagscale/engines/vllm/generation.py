"""The sampling values that a model's folder sets by its `generation_config.json`, for servers and batches."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flagscale.checks.model_folder import mapping_of
from flagscale.engines.vllm.sampling import field_violations
from flagscale.errors import Violation
from flagscale.files import user_path

FILE = "generation_config.json"
_OVERRIDE = "override_generation_config"
_OF_MODEL = ("auto", "vllm")
"""The values of `generation_config` that are not a folder."""
_NEUTRAL = {"temperature": (1,), "top_p": (1,), "repetition_penalty": (1,), "top_k": (0, -1)}
"""The values that change nothing, if not only 0."""
_TAKEN = {
    **dict.fromkeys(("repetition_penalty", "presence_penalty", "frequency_penalty")),
    **dict.fromkeys(("temperature", "top_k", "top_p", "min_p")),
    "max_new_tokens": "max_tokens",
}
"""The keys that vLLM 0.32 takes (`ModelConfig.get_diff_sampling_param`) -> the field, if of another name."""
_OF_ONE_MODEL = ("attn_temperature_tuning",)
"""Keys that the code of a single model reads: Llama 4."""


def generation_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of SamplingParams, and their values, that apply if a request does not give them.

    As vLLM does: from the file in the model's folder (`generation_config: auto`), in another folder (its
    path), or in none (`vllm`); `override_generation_config` comes last. {} for a model on a hub.
    """
    found = {**_of_folder(values), **mapping_of(values[_OVERRIDE])}
    return {_TAKEN[key] or key: found[key] for key in _TAKEN if found.get(key) is not None}


def generation_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield the mistakes in `generation_config` and `override_generation_config`, which the user writes."""
    source = str(values["generation_config"])
    folder = user_path(source)
    is_path = os.path.exists(folder) or source.startswith(("/", ".", "~"))
    if source not in _OF_MODEL and is_path and not os.path.isfile(folder / FILE):
        # If there is a config.json, vLLM would continue without the values and without a message.
        yield "generation_config", f"{source}: no folder with a {FILE}; use its path, `auto` or `vllm`"
    try:
        _read(_file(values))
    except ValueError as error:
        # vLLM would continue without the values and without a message, or end with a traceback.
        what = f"{error}: vLLM would not take its sampling values and the tokens that end answers"
        yield "model" if source in _OF_MODEL else "generation_config", f"{what}; repair or remove it"
    given = mapping_of(values[_OVERRIDE])
    for key, field in _TAKEN.items():
        for _, what in field_violations({field or key: given[key]} if key in given else {}):
            as_written = what.replace(f"`{field}`", f"`{key}`")
            yield _OVERRIDE, f"{as_written}: vLLM would refuse every request without a value of its own"
    for key, meant in _ignored(given).items():
        if meant:
            yield _OVERRIDE, f"vLLM would ignore `{key}`; did you mean `{meant}`?"


def generation_remarks(
    values: Mapping[str, Any], sampling: Mapping[str, Any] | None = None
) -> Iterator[Violation]:
    """Yield which values of the folder apply to a server's requests; with `sampling`, to a batch with it."""
    for key, meant in _ignored(mapping_of(values[_OVERRIDE])).items():
        if not meant:
            yield _OVERRIDE, f"vLLM ignores `{key}`; it takes {', '.join(_TAKEN)}"
    given = {key for key, value in (sampling or {}).items() if value is not None}
    given |= {_TAKEN.get(key) or key for key in mapping_of(values[_OVERRIDE])}
    taken = {
        name: value
        for name, value in generation_values(values).items()
        if name not in given and value not in _NEUTRAL.get(name, (0,))
    }
    yield from _other_ends(values)
    if not taken:
        return
    source = str(values["generation_config"])
    file = f"its {FILE}" if source == "auto" else f"{FILE} of {source}"
    # Unless a batch says null, a plain prompt has a limit of its own (`prompts.PLAIN_MAX_TOKENS`).
    chats = {} if sampling and "max_tokens" in sampling else {"max_tokens": " (chats)"}
    shown = ", ".join(f"{name} {value}{chats.get(name, '')}" for name, value in taken.items())
    whom = "requests without values of their own" if sampling is None else "all prompts"
    yield "model", f"{file} sets {shown} for {whom}; `generation_config: vllm` turns this off"
    if sampling is None:
        for _, what in field_violations(taken):
            yield "model", f"{what} ({file}): vLLM will refuse requests without a value of their own"


def _ignored(given: Mapping[str, Any]) -> dict[str, str]:
    """Return the keys of an override that vLLM ignores, with the key that is meant; "" if that is unknown."""
    from difflib import get_close_matches  # imported here, because nearly every start has no use for it

    fields = {field: key for key, field in _TAKEN.items() if field}
    ignored = [key for key in map(str, given) if key not in _TAKEN and key not in _OF_ONE_MODEL]
    # Nearly equal: valid keys of requests, such as `stop`, resemble others.
    return {key: fields.get(key) or "".join(get_close_matches(key, _TAKEN, 1, 0.8)) for key in ignored}


def _other_ends(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield that `generation_config` changes the tokens that end answers, which vLLM reads there as well."""
    if values["generation_config"] in _OF_MODEL:
        return
    try:
        own, used = (_read(file(values)).get("eos_token_id") for file in (_own_file, _file))
    except ValueError:
        return  # already reported, or not used
    if own is not None and own != used:
        ends = "without `eos_token_id`" if used is None else f"`eos_token_id` {used}"
        what = f"the tokens that end answers are those of this folder ({ends}), not the model's {own}"
        yield "generation_config", what


def _of_folder(values: Mapping[str, Any]) -> Mapping[str, Any]:
    if values["generation_config"] == "vllm":
        return {}
    try:
        return _read(_file(values))
    except ValueError:
        return {}  # already reported


def _file(values: Mapping[str, Any]) -> Path:
    """Return the file that vLLM reads: for tokens that end answers, also without its sampling values."""
    source = str(values["generation_config"])
    return _own_file(values) if source in _OF_MODEL else user_path(source) / FILE


def _own_file(values: Mapping[str, Any]) -> Path:
    return user_path(str(values["hf_config_path"] or values["model"])) / FILE


def _read(file: Path) -> Mapping[str, Any]:
    """Return the content; {} if there is no such file; raises ValueError if it is not a JSON object."""
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        return {}
    except ValueError as error:
        raise ValueError(f"{file}: cannot be read ({error})") from None
    if not isinstance(read, dict):
        raise ValueError(f"{file}: not a JSON object")
    return read
