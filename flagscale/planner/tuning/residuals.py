"""The errors of estimates, learnt from trials: Bayesian linear regression of log(measured / estimated).

An estimate that is wrong is so for a reason, which other candidates share: tensor parallelism costs more on
this machine, small micro-batches less. So the logarithm of the error is a sum of one weight per doubling of
each degree, with a prior as wide as the stated error of estimates, and a part that only the candidate has.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log, sqrt

from flagscale.frozen import dataclass

LEAST_NOISE = 0.02
"""The standard deviation of the logarithm of a measured time between equal trials, at least."""
_SHARE = 0.5
"""The part of the stated error that one doubling of a degree has, and the candidate alone: layouts of one job
differ by about four doublings."""
_MOST_OWN = 0.1
_SIDE = 1.96
"""Standard deviations to the side of a 95 % interval."""

Features = Sequence[float]
Measured = tuple[Features, float, float, float]
"""The features of a candidate, its estimated and its measured time, the relative noise of the latter."""


@dataclass(frozen=True)
class Residuals:
    """The errors of estimates as far as they are known."""

    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    own: float
    """The standard deviation of the part that only a candidate has."""

    def factor(self, features: Features) -> float:
        """Return what a time is probably, relative to its estimate."""
        return exp(_dot(self.mean, features))

    def low_factor(self, features: Features) -> float:
        """Return what a time is at least, with 95 %, relative to its estimate."""
        spread = _dot([_dot(row, features) for row in self.covariance], features) + self.own**2
        return exp(_dot(self.mean, features) - _SIDE * sqrt(max(0.0, spread)))


def deviation(low_factor: float) -> float:
    """Return the standard deviation of the logarithm of an error whose 95 % interval begins at a factor."""
    return -log(min(max(low_factor, 1e-3), 0.999)) / _SIDE


def residuals(measured: Sequence[Measured], size: int, error: float) -> Residuals:
    """Return what trials have taught.

    Args:
        measured: the trials.
        size: the number of features.
        error: the stated error of an estimate, as the standard deviation of its logarithm.
    """
    each = _SHARE * error
    own = min(each, _MOST_OWN)
    precision = [[1 / each**2 if row == column else 0.0 for column in range(size)] for row in range(size)]
    right = [0.0] * size
    for features, expected, seconds, noise in measured:
        weight = 1 / (max(noise, LEAST_NOISE) ** 2 + own**2)
        for row in range(size):
            right[row] += weight * features[row] * log(seconds / expected)
            for column in range(size):
                precision[row][column] += weight * features[row] * features[column]
    covariance = _inverse(precision)
    mean = tuple(_dot(row, right) for row in covariance)
    return Residuals(mean, covariance, own)


def _dot(one: Features, other: Features) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def _inverse(matrix: Sequence[Sequence[float]]) -> tuple[tuple[float, ...], ...]:
    """Return the inverse of a positive definite matrix, by Gauss and Jordan without pivots."""
    size = len(matrix)
    unit = [[float(row == column) for column in range(size)] for row in range(size)]
    rows = [[*left, *right] for left, right in zip(matrix, unit, strict=True)]
    for pivot in range(size):
        scale = rows[pivot][pivot]
        rows[pivot] = [value / scale for value in rows[pivot]]
        for number in range(size):
            if number != pivot and (factor := rows[number][pivot]):
                rows[number] = [a - factor * b for a, b in zip(rows[number], rows[pivot], strict=True)]
    return tuple(tuple(row[size:]) for row in rows)
