"""The published and measured figures of chips, as data with their sources; users add chips by a file.

A measured figure overrides the nominal one. Nothing here is computed from a chip's name.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flagscale.errors import Problem, UserError, nearest
from flagscale.frozen import dataclass, field
from flagscale.planner.curves import Curves, curves_of

TABLE = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class Link:
    """The connection between devices: `bytes_s` per device and direction; 0 if unknown or absent."""

    bytes_s: float = 0.0
    latency_s: float = 0.0
    """Seconds of one message; 0: unknown, and the constants of the time model apply."""
    is_bus: bool = False
    """Whether devices share it with the host (PCIe)."""


@dataclass(frozen=True)
class Chip:
    """One kind of device; rates are those of one device."""

    name: str
    flop_s: Mapping[str, float]
    """Dense peak by precision: bfloat16, float16, float32, fp8, fp4; those that are unknown are absent."""
    memory_bytes: float
    """The most that a process can allocate, as far as known."""
    hbm_bytes_s: float
    """Bandwidth of the device's own memory; 0 if unknown."""
    inside: Link = Link()
    """Between the devices of one node."""
    outside: Link = Link()
    """Between nodes, per device."""
    per_node: int = 8
    """Devices that the `inside` link connects."""
    power_w: float = 0.0
    """Watts that the device may draw; 0 if unknown."""
    workspace_bytes: float = 2**25
    """Bytes of one workspace of a library of multiplications (PyTorch takes 32 MiB on recent
    chips, 8 on those before; TransformerEngine 32 and 4)."""
    measured: Mapping[str, Any] = field(default_factory=dict)
    """Curves and shares measured on this chip; see docs/planner.md for the names."""
    curves: Curves = Curves()
    """Those of `measured` that are tables over sizes."""
    source: str = ""


def find_chip(name: str) -> Chip:
    """Return a chip of the table. Raises UserError with the nearest name if there is none."""
    entries = chip_table()
    if name not in entries:
        raise UserError([Problem(f"unknown chip `{name}`", "", nearest(name, entries))])
    return chip_of(name, entries[name])


@functools.cache
def chip_table() -> Mapping[str, Any]:
    """Return the entries that come with FlagScale, by name."""
    found: Mapping[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))["chips"]
    return found


def chip_of(name: str, entry: Mapping[str, Any]) -> Chip:
    """Return the chip of one entry of the table. A peak that was not published is that of the fastest
    measured product; a link inside a node that was not, that of measured messages.

    Raises:
        UserError: a measured table is wrong.
    """
    inside, outside = entry.get("intra_node") or {}, entry.get("inter_node") or {}
    measured = entry.get("measured") or {}
    curves = curves_of(name, measured)
    flop_s = {
        precision: peak
        for precision, key in PEAKS.items()
        if (peak := 1e12 * _number(entry.get(key)) or curves.best(precision))
    }
    is_bus = str(inside.get("protocol")).startswith("PCIe")
    both_ways = 1e9 * _number(inside.get("gb_s"))
    return Chip(
        name=name,
        flop_s=flop_s,
        memory_bytes=_memory(entry, measured),
        hbm_bytes_s=1e9 * _number(measured.get("hbm_gb_s"), entry.get("hbm_gb_s")),
        # The data gives both directions together for links inside a node.
        inside=Link(both_ways / 2, is_bus=is_bus) if both_ways else Link(*curves.link()),
        outside=Link(1e9 * _number(outside.get("gbit_s_per_card")) / 8),
        per_node=int(inside.get("world") or 1),
        power_w=_number(measured.get("tdp_w"), entry.get("tdp_w")),
        workspace_bytes=2**20 * (_number(entry.get("workspace_mib")) or 32),
        measured=measured,
        curves=curves,
        source=_source(entry.get("source") or measured.get("source")),
    )


PEAKS = {
    "bfloat16": "bf16_tflops_dense",
    "float16": "fp16_tflops_dense",
    "float32": "fp32_tflops_dense",
    "fp8": "fp8_tflops_dense",
    "fp4": "fp4_tflops_dense",
}


def _memory(entry: Mapping[str, Any], measured: Mapping[str, Any]) -> float:
    # Most data sheets say GB, but count in GiB, and a part is reserved: a device of "80 GB" reports 79.1 GiB.
    reported = entry.get("usable_memory") or {}
    found = (measured.get("memory_gib"), reported.get("gib"), entry.get("memory_gb"))
    return 2**30 * next(filter(None, map(_number, found)), 0.0)


def _number(*candidates: Any) -> float:
    """Return the first figure that is known, 0 if none is; of a range, the middle."""
    for one in candidates:
        if isinstance(one, list) and one:
            return float(sum(one) / len(one))
        if isinstance(one, int | float):
            return float(one)
    return 0.0


def _source(source: Any) -> str:
    if not isinstance(source, Mapping):
        return str(source or "")
    places = ("url", "repo", "path", "commit", "machine", "device", "torch", "date")
    return " ".join(str(source[place]) for place in places if source.get(place))
