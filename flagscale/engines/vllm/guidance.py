"""What vLLM cannot do in an engine that guides requests; the reasons are in docs/guidance.md."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from flagscale.checks.guidance import NEGATIVE, Guidance
from flagscale.config.certain import certain_violations
from flagscale.config.engine_args import EngineArguments
from flagscale.errors import Violation

_CONNECTOR = "the twin of a guided request has no place in a KV cache outside the engine"
_DRAFTS = "tokens that are proposed in advance cannot be drawn for two rows at once"

_ABSENT: Mapping[str, str] = {
    "scheduler_cls": "guidance brings its own scheduler",
    **dict.fromkeys(("speculative_config", "spec_method", "spec_model", "spec_tokens"), _DRAFTS),
    **dict.fromkeys(("kv_transfer_config", "ec_transfer_config", "kv_offloading_size"), _CONNECTOR),
    "watermark_config": "guidance draws the tokens itself",
    "diffusion_config": "models of this kind do not generate token by token",
    "pooler_config": "models of this kind generate no tokens",
}
"""Argument that must not be given -> the reason."""

_VALUES: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "runner": (("auto", "generate"), "other models generate no tokens"),
    "logprobs_mode": (
        ("raw_logprobs", "raw_logits"),
        "processed values would only show that the drawn token is forced",
    ),
    "enable_batch_sharded_sampling": ((None, False), "both rows are drawn together"),
    "decode_context_parallel_size": ((1,), "a row's cache would be divided"),
    "prefill_context_parallel_size": ((1,), "a row's cache would be divided"),
}
"""Argument -> the values that it may have, and the reason."""


def broken_by_guidance(
    arguments: EngineArguments, asked: frozenset[Guidance] = frozenset()
) -> list[Violation]:
    """Return the arguments of an engine that guides, by dest, that cannot be combined with it.

    `asked`: the guidance of a batch. As `arguments.broken_rules`, whatever the mistakes are meant to be.
    """
    if not arguments.is_complete:
        return []
    return certain_violations(lambda values: _violations(values, asked), arguments.values, arguments.unknown)


def _violations(values: Mapping[str, Any], asked: frozenset[Guidance]) -> Iterator[Violation]:
    for name, why in _ABSENT.items():
        if values.get(name) is not None:
            yield name, f"`{name}` cannot be combined with guidance: {why}; remove one of them"
    for name, (accepted, why) in _VALUES.items():
        if values.get(name, accepted[0]) not in accepted:
            shown = " or ".join(json.dumps(one).strip('"') for one in accepted if one is not None)
            given = json.dumps(values[name]).strip('"')
            yield name, f"`{name}: {given}` cannot be combined with guidance: {why}; use {shown}"
    for name in ("max_num_seqs", "max_num_active_seqs"):
        if values.get(name) == 1:
            yield name, f"`{name}` is 1, and a guided request takes two places: use 2 or more"
    if values.get("skip_tokenizer_init") and any(isinstance(one.negative, str) for one in asked):
        what = f"without a tokenizer, a `{NEGATIVE}` must be a list of token ids"
        yield "skip_tokenizer_init", f"{what}; give ids, or remove `skip_tokenizer_init`"
