"""From the two rows' logits to one token per guided request."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vllm_flagscale.guidance.request import Row

_NEVER = float("-inf")


def combine(prompt: torch.Tensor, negative: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return `negative + scale * (prompt - negative)`, of shape [requests, vocabulary], in float32.

    Logits instead of log-probabilities give the same distribution: they differ by a constant per row. Tokens
    that are masked in the row of the prompt stay masked, whatever the negative prompt allows.
    """
    combined = torch.lerp(negative, prompt, scales.unsqueeze(1))
    return combined.masked_fill_(prompt == _NEVER, _NEVER)


def draw(logits: torch.Tensor, rows: Sequence[Row], steps: Sequence[int]) -> torch.Tensor:
    """Return one token per row of logits; `steps` counts the tokens that each request has generated.

    The noise depends on the seed and the step alone, so a request draws the same in any company, and after it
    has lost its place in the cache.
    """
    tokens = logits.argmax(-1)
    for at, (row, step) in enumerate(zip(rows, steps, strict=True)):
        if row.temperature > 0:
            tokens[at] = _drawn(logits[at], row, step)
    return tokens


def _drawn(logits: torch.Tensor, row: Row, step: int) -> torch.Tensor:
    scaled = logits / row.temperature
    ids: torch.Tensor | None = None
    if 0 < row.top_k < scaled.numel():
        scaled, ids = scaled.topk(row.top_k)
    elif row.top_p < 1:
        scaled, ids = scaled.sort(descending=True)
    probabilities = scaled.softmax(-1)
    if row.top_p < 1:
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities.masked_fill(before >= row.top_p, 0)
    if row.min_p > 0:
        probabilities = probabilities.masked_fill(probabilities < row.min_p * probabilities.max(), 0)
    generator = torch.Generator(device=logits.device)
    generator.manual_seed((row.seed * 1000003 + step) % 2**63)
    noise = torch.empty_like(probabilities).exponential_(generator=generator)
    place = (probabilities / noise).argmax()
    return place if ids is None else ids[place]
