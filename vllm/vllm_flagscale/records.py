"""The results of batch inference: one JSON object per prompt, and the same as readable text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flagscale.checks.prompts import Prompt


def record_of(place: int, prompt: Prompt, answer: Any) -> dict[str, Any]:
    """Return what is written for a prompt: its line, and the outputs of the engine's answer."""
    given = prompt.line or {"prompt": prompt.text}
    record: dict[str, Any] = {**given, "index": place, "prompt_tokens": len(answer.prompt_token_ids or ())}
    record["outputs"] = [
        {
            "text": one.text,
            "token_ids": list(one.token_ids),
            "finish_reason": one.finish_reason,
            **({"logprobs": _logprobs(one.logprobs)} if one.logprobs else {}),
        }
        for one in answer.outputs
    ]
    if answer.prompt_logprobs:
        record["prompt_logprobs"] = _logprobs(answer.prompt_logprobs)
    return record


def _logprobs(positions: Any) -> list[dict[str, float] | None]:
    """Return, for each position, log probabilities by token id; None if it has none (the first one)."""
    return [
        {str(token): entry.logprob for token, entry in position.items()} if position else None
        for position in positions
    ]


def readable(results: Path) -> str:
    """Return the results as readable text: each prompt, followed by its outputs."""
    pieces = []
    with results.open(encoding="utf-8") as file:
        for record in map(json.loads, file):
            prompt = Prompt(
                record.get("prompt", ""),
                tuple(record.get("prompt_token_ids", ())),
                tuple(record.get("messages", ())),
            )
            pieces.append(f"=== {record['index']}\n{prompt.shown}")
            pieces += [f"--- {output['finish_reason']}\n{output['text']}" for output in record["outputs"]]
    return "\n".join(pieces) + "\n"
