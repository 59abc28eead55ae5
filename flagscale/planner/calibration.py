"""Constants of one machine and its software, from a few jobs that were measured on it.

Times have one of two pairs of constants. `fitted` knows nothing but times: a scale and an offset.
`fitted_machine` also knows how each estimate depends on the speed of the host, which differs most between
machines and releases: a scale, and a factor of the host's time per operation. It needs fewer measurements to
be right about jobs of other sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log, log2
from statistics import median

from flagscale.frozen import dataclass

Pair = tuple[float, float]
"""(estimated without calibration, measured), both positive and in the same unit."""

HOSTS = (0.0625, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Factors of the host's time at which a job is estimated for `fitted_machine`."""

_SCALES = (0.1, 10.0)
"""A machine beyond these is not what its figures say; then the estimate is wrong, not the machine."""
_DOUBT = 10.0
"""The weight against an offset (squared, relative to the middle time): few pairs tell it from noise badly."""
_HOST_DOUBT = 0.03
"""The weight against another host (squared logarithm of its factor), for the same reason."""
_PARTS = 4
"""Factors that are tried from each of `HOSTS` to the next."""


@dataclass(frozen=True)
class Calibration:
    """The correction of an estimate: time = scale * estimate + offset, memory = estimate + bytes."""

    scale: float = 1.0
    offset_s: float = 0.0
    """Seconds per step that do not grow with the work; at least 0."""
    memory_bytes: float = 0.0
    """Per rank; it may be negative."""
    host: float = 1.0
    """The host's time per operation, relative to the constants; the estimate is one with this host."""

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
    differences = [measured - estimated for estimated, measured in memories if min(estimated, measured) > 0]
    is_shared = bool(differences) and (min(differences) > 0 or max(differences) < 0)
    scale, offset = _line([pair for pair in times if min(pair) > 0])
    return Calibration(scale, offset, min(differences, key=abs) if is_shared else 0.0)


def fitted_machine(estimates: Sequence[Sequence[float]], measured: Sequence[float]) -> Calibration:
    """Return the scale and the host with the smallest relative squared errors of time.

    Args:
        estimates: for each job, its seconds at each of `HOSTS`.
        measured: for each job, its seconds. One job gives the scale alone.
    """
    jobs = [*zip(estimates, measured, strict=True)]
    if len(jobs) < 2:
        return fitted([(at_host(seconds, 1.0), own) for seconds, own in jobs])
    best, least = Calibration(), float("inf")
    for host in _hosts():
        ratios = [at_host(seconds, host) / own for seconds, own in jobs]
        scale = _clipped(sum(ratios) / sum(ratio * ratio for ratio in ratios))
        loss = sum((scale * ratio - 1) ** 2 for ratio in ratios) + _HOST_DOUBT * log(host) ** 2
        if loss < least:
            best, least = Calibration(scale, host=host), loss
    return best


def at_host(seconds: Sequence[float], host: float) -> float:
    """Return the seconds of a job with a host, from those at `HOSTS`: linear between two of them."""
    place = min(max(log2(host / HOSTS[0]), 0.0), len(HOSTS) - 1.0)
    left = min(int(place), len(HOSTS) - 2)
    share = (host - HOSTS[left]) / (HOSTS[left + 1] - HOSTS[left])
    return seconds[left] + (seconds[left + 1] - seconds[left]) * min(max(share, 0.0), 1.0)


def _hosts() -> list[float]:
    return [HOSTS[0] * 2 ** (step / _PARTS) for step in range((len(HOSTS) - 1) * _PARTS + 1)]


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
    return _clipped(a / aa), 0.0


def _clipped(scale: float) -> float:
    return min(max(scale, _SCALES[0]), _SCALES[1])
