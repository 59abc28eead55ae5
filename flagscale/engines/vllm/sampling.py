"""The sampling values of batch inference: fields of SamplingParams, refused as vLLM 0.32 refuses them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from flagscale.config.bounds import broken_bounds
from flagscale.engines.vllm.catalog import vllm_catalog
from flagscale.errors import Violation, nearest

DEFAULT_MAX_TOKENS = 16
"""Tokens of an answer to a plain prompt if nothing says more: that of completions, and of vLLM's class."""
_JSON: Mapping[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "list": (list,),
    "dict": (dict,),
}


def field_violations(sampling: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield the fields that SamplingParams does not have, and values of a wrong type or out of range."""
    fields = vllm_catalog().sampling
    for key, value in sampling.items():
        field = fields.get(key)
        if field is None:
            hint = nearest(str(key), fields)
            yield str(key), f"SamplingParams has no field `{key}`{f'; {hint}' if hint else ''}"
        elif value is None:
            continue
        elif type(value) not in sum((_JSON[kind] for kind in field.kinds), ()):
            yield str(key), f"`{key}` takes {' or '.join(field.kinds)}, not {value!r}"
        else:
            for path, what in broken_bounds(field.bounds, str(key), value):
                yield f"{key}.{path}" if path else str(key), what


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
        most = DEFAULT_MAX_TOKENS
    if most is not None and least > most:
        note = "" if "max_tokens" in sampling else ", which is the default"
        yield "min_tokens", f"`min_tokens` is {least}, more than `max_tokens` {most}{note}"
    if values.get("n", 1) > 1 and values.get("temperature", 1.0) == 0:  # vLLM raises others to 0.01
        yield "n", f"`n` is {values['n']}, but `temperature` 0 gives the same answer each time: use n 1"
    stops = [values["stop"]] if isinstance(values.get("stop"), str) else values.get("stop", [])
    if stops and values.get("detokenize") is False:
        yield "stop", "`stop` needs text, and `detokenize` is false"
    for name, texts in (("stop", stops), ("bad_words", values.get("bad_words", []))):
        if any(not isinstance(text, str) or not text for text in texts):
            yield name, f"`{name}` takes texts that are not empty"
    yield from _logprob_violations(values, engine, vocabulary)
    yield from _id_violations(values, vocabulary)
    yield from _structure_violations(values.get("structured_outputs"))
    yield from _repetition_violations(values.get("repetition_detection"))


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


def _id_violations(values: Mapping[str, Any], vocabulary: int | None) -> Iterator[Violation]:
    if values.get("allowed_token_ids") == []:
        yield "allowed_token_ids", "`allowed_token_ids` is empty: no token could follow"
    for token, bias in values.get("logit_bias", {}).items():
        if type(bias) not in (int, float):
            yield "logit_bias", f"`logit_bias` takes a number for the token {token}, not {bias!r}"
    for name in ("stop_token_ids", "allowed_token_ids", "logprob_token_ids", "logit_bias"):
        # The keys of JSON are texts.
        read = _id_in if name == "logit_bias" else _id
        for token in values.get(name, ()):
            number = read(token)
            if number is None:
                yield name, f"`{name}` holds ids of tokens, not {token!r}"
            elif vocabulary is not None and not 0 <= number < vocabulary:
                yield name, f"`{name}`: {token} is not an id of the model's {vocabulary} tokens"


def _id(token: object) -> int | None:
    return token if type(token) is int else None


def _id_in(key: object) -> int | None:
    return int(str(key)) if re.fullmatch(r"0|-?[1-9][0-9]*", str(key)) else None


_CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")


def _structure_violations(structure: Mapping[str, Any] | None) -> Iterator[Violation]:
    if structure is None:
        return
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


def _repetition_violations(detection: Mapping[str, Any] | None) -> Iterator[Violation]:
    if detection is None:
        return
    longest, shortest, count = (
        int(detection.get(name, 0)) for name in ("max_pattern_size", "min_pattern_size", "min_count")
    )
    if shortest < 0 or longest < shortest:
        what = f"0 <= `min_pattern_size` <= `max_pattern_size` is required, not {shortest} and {longest}"
        yield "repetition_detection", what
    elif longest and count < 2:
        yield "repetition_detection.min_count", f"`min_count` is {count}; it must be at least 2"
