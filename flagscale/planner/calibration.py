"""Constants of one machine and its software, from a few jobs that were measured on it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from flagscale.frozen import dataclass

Pair = tuple[float, float]
"""(estimated without calibration, measured), both positive and in the same unit."""

_SCALES = (0.2, 5.0)
"""A machine beyond these is not what its figures say; then the estimate is wrong, not the machine."""
_DOUBT = 0.05
"""The weight of a constant time against one squared relative error: a few pairs tell it from noise badly."""


@dataclass(frozen=True)
class Calibration:
    """What an estimate is corrected by: time = scale * estimate + offset, memory = estimate + bytes."""

    scale: float = 1.0
    offset_s: float = 0.0
    """Seconds per step that do not grow with the work; at least 0."""
    memory_bytes: float = 0.0
    """Per rank; it may be negative."""

    def seconds(self, estimated: float) -> float:
        """Return a calibrated time of a step from an estimated one."""
        return self.scale * estimated + self.offset_s

    def nbytes(self, estimated: float) -> float:
        """Return calibrated bytes from estimated ones."""
        return max(0.0, estimated + self.memory_bytes)


def fitted(times: Sequence[Pair] = (), memories: Sequence[Pair] = ()) -> Calibration:
    """Return the calibration that fits pairs of seconds and of bytes best; pairs that are not positive drop out.

    One time gives the scale alone; of two or more, the relative squared errors are made smallest over scale
    and offset. The memory offset is the median difference.
    """
    usable = [(estimated, measured) for estimated, measured in times if estimated > 0 and measured > 0]
    scale, offset = _line(usable)
    differences = [measured - estimated for estimated, measured in memories]
    return Calibration(scale, offset, float(median(differences)) if differences else 0.0)


def _line(pairs: Sequence[Pair]) -> tuple[float, float]:
    """Return the scale and the offset of pairs of seconds."""
    if not pairs:
        return 1.0, 0.0
    only_scale = _clipped(1 / _middle([estimated / measured for estimated, measured in pairs])), 0.0
    if len(pairs) == 1:
        return only_scale
    # Rows of a linear problem in (scale, offset / unit): estimated / measured, unit / measured -> 1.
    unit = _middle([measured for _, measured in pairs])
    rows = [(estimated / measured, unit / measured) for estimated, measured in pairs]
    aa = sum(a * a for a, _ in rows)
    ab = sum(a * b for a, b in rows)
    bb = sum(b * b for _, b in rows) + _DOUBT
    a, b = sum(a for a, _ in rows), sum(b for _, b in rows)
    determinant = aa * bb - ab * ab
    scale, share = (a * bb - b * ab) / determinant, (b * aa - a * ab) / determinant
    if share <= 0 or not _SCALES[0] <= scale <= _SCALES[1]:
        return only_scale
    return scale, share * unit


def _middle(values: Sequence[float]) -> float:
    """Return the geometric mean of the middle half of positive values: an outlier does not move it."""
    ordered = sorted(values)
    cut = len(ordered) // 4 if len(ordered) > 3 else (len(ordered) - 1) // 2
    kept = ordered[cut : len(ordered) - cut]
    product = 1.0
    for value in kept:
        product *= value ** (1 / len(kept))
    return product


def _clipped(scale: float) -> float:
    return min(max(scale, _SCALES[0]), _SCALES[1])
