"""From the logits of both rows to one token per guided request."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

from vllm_flagscale.guidance.request import Row

_NEVER = float("-inf")
_64_BITS = 2**64 - 1
_UNIT = 2.0**-31 * (1 - 2.0**-23)


def combine(prompt: torch.Tensor, negative: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Write `negative + scale * (prompt - negative)` over `prompt`, and return it.

    Both have the shape [requests, vocabulary], in float32; `scales` has [requests, 1]. Logits instead of
    log-probabilities give the same distribution: they differ by a constant per row. Tokens that are masked in
    the row of the prompt stay masked, whatever the negative prompt allows, and so does every token whose
    result is not finite.
    """
    combined = torch.lerp(negative, prompt, scales, out=prompt)
    return combined.nan_to_num_(nan=_NEVER, posinf=_NEVER, neginf=_NEVER)


@dataclass(frozen=True)
class Draws:
    """How some requests at a temperature above 0 are drawn; each tensor has one value per request."""

    seeds: tuple[int, ...]
    temperature: torch.Tensor
    """[requests, 1]"""
    top_k: torch.Tensor | None
    """None if no request limits it; otherwise, at most the vocabulary."""
    largest_k: int
    top_p: torch.Tensor | None
    log_min_p: torch.Tensor | None
    """[requests, 1]"""

    @classmethod
    def of(cls, rows: Sequence[Row], vocabulary: int, device: torch.device) -> Draws:
        def values(numbers: list[float]) -> torch.Tensor:
            return torch.tensor(numbers, dtype=torch.float32, device=device)

        top_k = [row.top_k if 0 < row.top_k < vocabulary else vocabulary for row in rows]
        top_p = [row.top_p for row in rows]
        log_min_p = [math.log(row.min_p) if row.min_p > 0 else _NEVER for row in rows]
        return cls(
            seeds=tuple(row.seed for row in rows),
            temperature=values([row.temperature for row in rows]).unsqueeze(1),
            top_k=torch.tensor(top_k, device=device) if min(top_k) < vocabulary else None,
            largest_k=max(top_k),
            top_p=values(top_p) if min(top_p) < 1 else None,
            log_min_p=values(log_min_p).unsqueeze(1) if max(log_min_p) > _NEVER else None,
        )


def draw(logits: torch.Tensor, draws: Draws, steps: Sequence[int]) -> torch.Tensor:
    """Return one token per row of logits; `steps` counts the tokens that each request has generated.

    The order is vLLM's: temperature, min-p, top-k, top-p. The noise of a token depends on the seed, the step
    and the token alone (not on its rank, nor on the other rows), so a request draws the same in any company,
    and again after it has lost its place in the cache.
    """
    scaled = logits / draws.temperature
    if draws.log_min_p is not None:
        scaled.masked_fill_(scaled < scaled.amax(1, keepdim=True) + draws.log_min_p, _NEVER)
    possible, tokens = _possible(scaled, draws)
    keys = keys_of(draws.seeds, steps).to(logits.device, non_blocking=True)
    drawn = (possible - log_exponentials(keys, tokens)).argmax(1, keepdim=True)
    return tokens.expand(len(keys), -1).gather(1, drawn).squeeze(1)


def _possible(scaled: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits after top-k and top-p, and their tokens (int64, [requests or 1, columns])."""
    if draws.top_k is not None and draws.largest_k < scaled.shape[1] and scaled.is_cpu:
        best, tokens = scaled.topk(draws.largest_k + 1)
        best.masked_fill_(best < best.gather(1, draws.top_k.unsqueeze(1) - 1), _NEVER)
        # Tokens as likely as the last of the k count as well. Here, one column more than k shows if there are
        # any; on a device, the host would have to wait for the answer.
        if best[:, -1].max() == _NEVER:
            return apply_top_k_top_p(best, None, draws.top_p), tokens
    possible = apply_top_k_top_p(scaled, draws.top_k, draws.top_p)
    return possible, torch.arange(scaled.shape[1], device=scaled.device).unsqueeze(0)


def keys_of(seeds: Sequence[int], steps: Sequence[int]) -> torch.Tensor:
    """Return two numbers of 32 bits (int32, [requests, 2]) per pair of seed and step."""
    mixed = [_mixed(_mixed(seed) + step) for seed, step in zip(seeds, steps, strict=True)]
    return torch.from_numpy(np.array(mixed, dtype=np.uint64).view(np.int32).reshape(-1, 2))


def _mixed(number: int) -> int:
    """Return the next value of SplitMix64 (Steele, Lea and Flood, 2014) after a state of 64 bits."""
    number = (number + 0x9E3779B97F4A7C15) & _64_BITS
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & _64_BITS
    number = (number ^ number >> 27) * 0x94D049BB133111EB & _64_BITS
    return number ^ number >> 31


def log_exponentials(keys: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logarithm of exponential noise for each key and token (float32, [requests, tokens]).

    The token of the largest `logit - noise` follows the softmax of the logits (Gumbel, 1954). The numbers
    come from a hash in int32, which wraps in the same way on every device: the finalizer of MurmurHash3, with
    one half of the key before it and one half in it. Small numbers, which decide, keep 31 bits.
    """
    mixed = (tokens.to(torch.int32) * -1640531535) ^ keys[:, :1]
    mixed ^= (mixed >> 16).bitwise_and_(0xFFFF)
    mixed *= -2048144789  # 0x85EBCA6B
    mixed += keys[:, 1:]
    mixed ^= (mixed >> 13).bitwise_and_(0x7FFFF)
    mixed *= -1028477387  # 0xC2B2AE35
    mixed ^= (mixed >> 16).bitwise_and_(0xFFFF)
    # -(number + 0.5) / 2**31, and above -1 also after rounding
    uniform = mixed.bitwise_and_(0x7FFFFFFF) * -_UNIT
    uniform -= 0.5 * _UNIT
    return uniform.log1p_().neg_().log_()
