"""The constants of the time model that no data sheet tells, fitted on published measurements.

`constants.json` holds their units, meanings and ranges, the values fitted on all sources, and for each source
of measurements those fitted without it, with which its own errors are stated. It is written by
`python -m benchmarks.estimate --fit`.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from flagscale.frozen import dataclass

TABLE = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class Constants:
    """One set of values; constants.json says what each means. Times are in seconds."""

    gemm_share: float
    sustained_share: float
    power_exponent: float
    ramp_s: float
    grouped_share: float
    attention_share: float
    hbm_share: float
    launch_s: float
    link_share: float
    bus_share: float
    network_share: float
    alltoall_share: float
    latency_s: float
    step_s: float


@functools.cache
def constants(without: str = "") -> Constants:
    """Return the values fitted on all sources, or on all but one (those on all if it was not used at all)."""
    table = constants_table()
    return Constants(**table["without"].get(without, table["all"]))


@functools.cache
def constants_table() -> Any:
    """Return the whole of constants.json."""
    return json.loads(TABLE.read_text(encoding="utf-8"))
