"""The sampling values of batch inference: fields of SamplingParams, refused as vLLM 0.32 refuses them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from flagscale.checks.prompts import PLAIN_MAX_TOKENS
from flagscale.config.bounds import broken_bounds
from flagscale.engines.vllm.catalog import vllm_catalog
from flagscale.errors import Violation, nearest, short

_JSON: Mapping[str, tuple[str, tuple[type, ...]]] = {
    "bool": ("true or false", (bool,)),
    "int": ("a whole number", (int,)),
    "float": ("a number", (int, float)),
    "str": ("a text", (str,)),
    "list": ("a list", (list,)),
    "dict": ("a mapping", (dict,)),
}


def field_violations(sampling: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield unknown fields of SamplingParams, and values that are wrong whatever the others are."""
    fields = vllm_catalog().sampling
    for key, value in sampling.items():
        field = fields.get(key)
        if field is None:
            hint = nearest(str(key), fields)
            yield str(key), f"SamplingParams has no field `{key}`{f'; {hint}' if hint else ''}"
        elif value is None:
            continue
        elif not any(type(value) in _JSON[kind][1] for kind in field.kinds):
            expected = " or ".join(_JSON[kind][0] for kind in field.kinds)
            yield str(key), f"`{key}` takes {expected}, not {short(value)}"
        elif broken := [*broken_bounds(field.bounds, str(key), value)]:
            yield from ((f"{key}.{path}" if path else str(key), what) for path, what in broken)
        else:
            yield from _content_violations(str(key), value)


def _content_violations(key: str, value: Any) -> Iterator[Violation]:
    """Yield what is wrong within the value of a field."""
    match key:
        case "stop" | "bad_words":
            if any(not isinstance(one, str) or not one for one in _listed(value)):
                yield key, f"`{key}` takes texts that are not empty"
        case "allowed_token_ids" if not value:
            yield key, "`allowed_token_ids` is empty: no token could follow"
        case "stop_token_ids" | "allowed_token_ids" | "logprob_token_ids" | "logit_bias":
            for token in value:
                if _id_of(token, key) is None:
                    yield key, f"`{key}` holds ids of tokens, not {short(token)}"
                elif key == "logit_bias" and type(value[token]) not in (int, float):
                    yield key, f"`logit_bias` takes a number for the token {token}, not {short(value[token])}"
        case "structured_outputs":
            yield from _structure_violations(value)
        case "repetition_detection":
            yield from _repetition_violations(value)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _id_of(token: object, key: str) -> int | None:
    """Return the id; None if it is not one. A mapping has texts as keys, once it is JSON."""
    if key != "logit_bias":
        return token if type(token) is int else None
    return int(str(token)) if re.fullmatch(r"0|-?[1-9][0-9]*", str(token)) else None


def request_violations(
    sampling: Mapping[str, Any],
    defaults: Mapping[str, Any],
    engine: Mapping[str, Any],
    vocabulary: int | None,
    is_plain: bool,
) -> Iterator[Violation]:
    """Yield the fields that contradict each other, the engine's arguments, or the size of the vocabulary.

    `sampling` is what the user gives, `defaults` what the model's folder adds (`generation_values`). Both
    passed `field_violations`. `is_plain`: no prompt is a chat, so that answers have a limit by default.
    """
    values = {**defaults, **{key: value for key, value in sampling.items() if value is not None}}
    least, most = values.get("min_tokens", 0), sampling.get("max_tokens")
    if most is None and is_plain and "max_tokens" not in sampling:
        most = PLAIN_MAX_TOKENS
    if most is not None and least > most:
        note = "" if "max_tokens" in sampling else ", which is the default"
        yield "min_tokens", f"`min_tokens` is {least}, more than `max_tokens` {most}{note}"
    if values.get("n", 1) > 1 and values.get("temperature", 1.0) == 0:  # vLLM raises others to 0.01
        yield "n", f"`n` is {values['n']}, but `temperature` 0 gives the same answer each time: use n 1"
    if values.get("stop") and values.get("detokenize") is False:
        yield "stop", "`stop` needs text, and `detokenize` is false"
    yield from _logprob_violations(values, engine, vocabulary)
    for name in ("stop_token_ids", "allowed_token_ids", "logprob_token_ids", "logit_bias"):
        for token in values.get(name, ()):
            number = _id_of(token, name)
            if number is not None and vocabulary is not None and not 0 <= number < vocabulary:
                yield name, f"`{name}`: {token} is not an id of the model's {vocabulary} tokens"


def _logprob_violations(
    values: Mapping[str, Any], engine: Mapping[str, Any], vocabulary: int | None
) -> Iterator[Violation]:
    most = engine["max_logprobs"]
    for name in ("logprobs", "prompt_logprobs"):
        wanted = vocabulary if values.get(name) == -1 else values.get(name)
        if wanted and most != -1 and wanted > most:
            shown = f"-1, which are all {wanted}" if values[name] == -1 else wanted
            yield (
                name,
                f"`{name}` is {shown}, more than the engine's `max_logprobs` {most}; raise it in `llm`",
            )
    chosen, count = values.get("logprob_token_ids"), values.get("logprobs")
    if chosen and count is not None and count != len(chosen):
        yield "logprobs", f"`logprobs` is {count}, but there are {len(chosen)} `logprob_token_ids`"


_CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")


def _structure_violations(structure: Mapping[str, Any]) -> Iterator[Violation]:
    given = [name for name in _CONSTRAINTS if structure.get(name) is not None]
    if len(given) != 1:
        shown = " and ".join(given) or "none"
        yield "structured_outputs", f"give exactly one of {', '.join(_CONSTRAINTS)} (given: {shown})"
    for name in given:
        value = structure[name]
        if (
            value is False
            or value == []
            or (isinstance(value, str) and name != "regex" and not value.strip())
        ):
            yield f"structured_outputs.{name}", f"`{name}` constrains nothing: {value!r}"


def _repetition_violations(detection: Mapping[str, Any]) -> Iterator[Violation]:
    longest, shortest, count = (
        int(detection.get(name, 0)) for name in ("max_pattern_size", "min_pattern_size", "min_count")
    )
    if shortest < 0 or longest < shortest:
        what = f"0 <= `min_pattern_size` <= `max_pattern_size` is required, not {shortest} and {longest}"
        yield "repetition_detection", what
    elif longest and count < 2:
        yield "repetition_detection.min_count", f"`min_count` is {count}; it must be at least 2"
