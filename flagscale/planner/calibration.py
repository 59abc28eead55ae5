"""Constants of one machine and its software, from a few jobs that were measured on it."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from flagscale.frozen import dataclass

Pair = tuple[float, float]
"""(estimated without calibration, measured), both positive and in the same unit."""

_SCALES = (0.1, 10.0)
"""A machine beyond these is not what its figures say; then the estimate is wrong, not the machine."""
_DOUBT = 3.0
"""The weight against an offset (squared, relative to the middle time): few pairs tell it from noise badly."""


@dataclass(frozen=True)
class Calibration:
    """What corrects an estimate: time = scale * estimate + offset, memory = estimate + bytes."""

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
    """Return the calibration that fits pairs of seconds and of bytes; pairs that are not positive drop out.

    Time: the relative squared errors are made smallest, for one pair over the scale alone, for more over
    scale and offset. Memory: the part of the differences that all pairs share, 0 if their signs differ.
    """
    differences = [measured - estimated for estimated, measured in memories if estimated > 0 and measured > 0]
    is_shared = bool(differences) and (min(differences) > 0 or max(differences) < 0)
    scale, offset = _line(
        [(estimated, measured) for estimated, measured in times if min(estimated, measured) > 0]
    )
    return Calibration(scale, offset, min(differences, key=abs) if is_shared else 0.0)


def _line(pairs: Sequence[Pair]) -> tuple[float, float]:
    """Return the scale and the offset of pairs of seconds."""
    if not pairs:
        return 1.0, 0.0
    # A linear problem in (scale, offset / unit): estimated / measured, unit / measured -> 1.
    unit = median(measured for _, measured in pairs)
    rows = [(estimated / measured, unit / measured) for estimated, measured in pairs]
    aa, bb = sum(a * a for a, _ in rows), sum(b * b for _, b in rows) + _DOUBT
    ab, a, b = sum(a * b for a, b in rows), sum(a for a, _ in rows), sum(b for _, b in rows)
    determinant = aa * bb - ab * ab
    scale, offset = (a * bb - b * ab) / determinant, unit * (b * aa - a * ab) / determinant
    if len(pairs) > 1 and offset > 0 and _SCALES[0] <= scale <= _SCALES[1]:
        return scale, offset
    return min(max(a / aa, _SCALES[0]), _SCALES[1]), 0.0
