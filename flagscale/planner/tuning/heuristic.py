"""A figure that ranks layouts where nothing better is known: no chip, no shape of the model."""

from __future__ import annotations

from collections.abc import Mapping
from math import log2
from typing import Any

from flagscale.checks.degrees import degrees, model_size

_AGAIN = 1 / 3
"""A second forward pass, as a share of a forward and a backward pass."""
_TIE = 1e-3


def heuristic_cost(values: Mapping[str, Any], world_size: int, batch: int) -> float:
    """Return the relative time of a step: the work of a rank, and the bubble of the pipeline.

    Of layouts that are equal in both, the one that divides a model over fewer ranks comes first. `values` are
    checked arguments (by dest), `batch` the samples per step.
    """
    found = degrees(values, world_size)
    micro_batches = max(1, batch // (found.dp * int(values["micro_batch_size"])))
    again = 0.0
    if values.get("recompute_granularity") == "full":
        per_stage = max(1, int(values.get("num_layers") or 1) // (found.pp * found.vpp))
        is_block = values.get("recompute_method") == "block"
        again = _AGAIN * (min(1, int(values["recompute_num_layers"]) / per_stage) if is_block else 1)
    bubble = (found.pp - 1) / (found.vpp * micro_batches)
    return (1 + again) * (1 + bubble) * (1 + _TIE * log2(model_size(values)))
