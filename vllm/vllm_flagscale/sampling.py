"""How a batch samples: as a server of the same folder does for requests with the same fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flagscale.checks.prompts import PLAIN_MAX_TOKENS


@dataclass(frozen=True)
class Sampling:
    """The parameters of plain prompts and of chats, and the values that the model's folder sets in them.

    `plain` is None if there are no plain prompts: a `min_tokens` above 16 is valid for chats alone.
    """

    plain: Any
    chat: Any
    from_folder: Mapping[str, Any]


def sampling_of(given: Mapping[str, Any], model_config: Any, structured: Any, *, has_plain: bool) -> Sampling:
    """Return the parameters for the fields that the user gives.

    A field that is not given, or null, takes the value of the model's `generation_config.json`, by the seam
    that the server uses (`ModelConfig.get_diff_sampling_param`). The length of answers follows
    `entrypoints/serve/utils/api_utils.py:get_max_tokens` of vLLM 0.32: without `max_tokens`, 16 tokens for
    plain prompts; chats, and null, take the folder's value, or all that fits (a server reads null in a plain
    prompt as 16). `structured` is the engine's configuration of structured outputs.

    Raises:
        ValueError: if vLLM refuses a value.
    """
    from vllm import SamplingParams

    if unknown := sorted(set(given) - set(SamplingParams.__struct_fields__)):
        raise ValueError(f"SamplingParams has no field {', '.join(unknown)}")
    defaults = model_config.get_diff_sampling_param()
    fields = {**defaults, **{name: value for name, value in given.items() if value is not None}}
    most = _most_tokens(model_config, defaults)

    def params(asked: int | None) -> Any:
        limit = _limit(asked, defaults, most)
        return _params({**fields, "max_tokens": limit}, model_config, structured)

    plain = params(given.get("max_tokens", PLAIN_MAX_TOKENS)) if has_plain else None
    taken = {name: value for name, value in defaults.items() if given.get(name) is None}
    return Sampling(plain, params(given.get("max_tokens")), taken)


def _most_tokens(model_config: Any, defaults: Mapping[str, Any]) -> int | None:
    """Return the limit that no request can exceed: that of another folder, or of an override."""
    if model_config.generation_config not in ("auto", "vllm"):
        return defaults.get("max_tokens")
    limit: int | None = (model_config.override_generation_config or {}).get("max_new_tokens")
    return limit


def _limit(asked: int | None, defaults: Mapping[str, Any], most: int | None) -> int | None:
    wanted = defaults.get("max_tokens") if asked is None else asked
    return min((one for one in (wanted, most) if one is not None), default=None)


def _params(fields: Mapping[str, Any], model_config: Any, structured: Any) -> Any:
    import msgspec
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError
    from vllm.tokenizers import cached_tokenizer_from_config

    tokenizer = cached_tokenizer_from_config(model_config) if fields.get("structured_outputs") else None
    try:
        params = msgspec.convert(fields, SamplingParams, str_keys=True)
        # On a copy: the engine verifies again, and chooses how to constrain the answers then.
        params.clone().verify(model_config, None, structured, tokenizer)
    except (msgspec.ValidationError, VLLMValidationError) as error:
        raise ValueError(f"sampling: {error}") from error
    return params
