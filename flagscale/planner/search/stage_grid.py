"""The most layers that the stages of a mesh can hold, for many limits on their seconds at once.

Imports numpy: see `layer_split.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flagscale.planner.search.mesh_options import Option

_NONE = -(10**6)
"""Layers of a stage that cannot hold any."""
_NOWHERE = 100 * _NONE
"""Layers of stages that do not exist."""


class StageGrid:
    """The layers that stages of one pool's options hold, for all limits `T` and stages behind.

    `middle[T, option, P]`: of the stages with up to `P - 1` stages behind them; `last` if one of them is the
    last of the pipeline; `first` is what replaces the step to `P` if that is the pipeline's first stage.
    """

    def __init__(self, found: Sequence[Option], limits: Any, stages: int, micro_batches: int) -> None:
        costs = np.array([option.costs for option in found])
        q = np.minimum(np.arange(1, stages + 1), micro_batches)
        self.most = np.array([option.most_stages for option in found])
        held = _held(costs, limits, q, 0, 0)
        ends = [costs[:, 7], costs[:, 8]], [costs[:, 9], costs[:, 10]]
        self.middle = _summed(held)
        top = _held(costs, limits, q, *ends[0])
        held[:, :, :1] = _held(costs, limits, q[:1], *ends[1])
        self.last = _summed(held)
        self.first = top

    def opened(self, most: Any) -> Any:
        """Return the most layers [T, P] with a mesh in front of stages that hold `most`; None: of none."""
        return self._extended(most, self.middle if most is not None else self.last)

    def closed(self, most: Any) -> Any:
        """Return the same if the mesh is the first one of the pipeline."""
        return self._extended(most, self._closing(most is None))

    def _closing(self, is_last: bool) -> Any:
        table = self.last if is_last else self.middle
        found = table.copy()
        found[:, :, 1:] = table[:, :, :-1] + self.first
        found[:, :, 1] = found[:, :, 1] if not is_last else _NONE  # see `_of_one_stage`
        return found

    def _extended(self, most: Any, ends: Any) -> Any:
        count = ends.shape[2]
        found = np.full((ends.shape[0], count), _NOWHERE, np.int32)
        if most is None:
            for stages in range(1, count):
                able = self.most >= stages
                if able.any():
                    found[:, stages] = ends[:, able, stages].max(axis=1)
            return found
        for window in np.unique(self.most):
            of = self.most == window
            # The best place to begin, among the `window` numbers of stages before each one.
            value = _windowed(most[:, None, :] - self.middle[:, of], int(min(window, count - 1)))
            np.maximum(found[:, 1:], (value[:, :, :-1] + ends[:, of, 1:]).max(axis=1), out=found[:, 1:])
        return found

    def chosen(self, most: Any, at: int, stages: int, is_first: bool) -> tuple[int, int]:
        """Return the option that holds the most layers up to `stages`, and the stages behind it."""
        table = (self.last if most is None else self.middle)[at]
        ends = self.first[at][:, stages - 1] + table[:, stages - 1] if is_first else table[:, stages]
        behind = np.arange(stages)
        before = np.where(behind == 0, 0, _NOWHERE) if most is None else most[:stages]
        value = before[None] + ends[:, None] - table[:, :stages]
        value = np.where(stages - behind[None] <= self.most[:, None], value, _NOWHERE)
        option, start = np.unravel_index(value.argmax(), value.shape)
        return int(option), int(start)


def _windowed(value: Any, width: int) -> Any:
    """Return, along the last axis, the largest of each number and the `width - 1` numbers before it."""
    found, size = value, 1
    while size < width:
        step = min(size, width - size)
        wider = found.copy()
        np.maximum(found[..., step:], found[..., :-step], out=wider[..., step:])
        found, size = wider, size + step
    return found


def _held(costs: Any, limits: Any, q: Any, seconds: Any, nbytes: Any) -> Any:
    """Return the layers of stages [T, option, q] if a real number of layers may be recomputed.

    An upper bound of what `layer_split` finds: it recomputes whole layers, and holds no fewer micro-batches.
    """
    layer, again, static, kept, kept_recomputed, fixed, _, *_, room = costs.T[:, :, None]
    time = limits[:, None, None] - (seconds[:, None] if np.ndim(seconds) else 0)
    left = room - fixed - (nbytes[:, None] if np.ndim(nbytes) else 0)
    each, saved = static + q * kept, q * np.maximum(kept - kept_recomputed, 0)
    # With `k` layers recomputed, `n layer + k again = time` and `n each - k saved = left - kept`.
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(saved > 0, 1 / (layer + again * each / saved), 0)
        offset = np.where(saved > 0, slope * again * (left - kept) / saved, 0)
        most = np.where(saved > 0, (left - kept) / (each - saved), 0)
    found = (time * slope[None]).astype(np.float32)
    found += offset[None].astype(np.float32)
    np.minimum(found, most[None], out=found, casting="same_kind")
    np.maximum(found, (left / each)[None], out=found, casting="same_kind")
    np.minimum(found, time / layer[None], out=found, casting="same_kind")
    held = (found * np.float32(1 + 1e-5)).astype(np.int32)
    held[held < 1] = _NONE
    return held


def _summed(held: Any) -> Any:
    none = np.zeros((*held.shape[:2], 1), np.int32)
    return np.concatenate([none, held.cumsum(axis=2, dtype=np.int32)], axis=2)
