"""An estimate for programs: stable names, bytes and seconds; docs/planner.md lists them."""

from __future__ import annotations

from typing import Any

from flagscale.estimates.text import notes
from flagscale.planner.estimate import Estimate, Speed, StageEstimate
from flagscale.values import Job


def estimate_tree(job: Job, found: Estimate) -> dict[str, Any]:
    """Return the object that `output=json` prints."""
    return {
        "job": job.name,
        "ranks": found.training.layout.world_size,
        "layout": job.layout,
        "fits": found.fits,
        "surely_fits": found.surely_fits,
        "limit": found.limit or None,
        "is_calibrated": found.is_calibrated,
        "stages": [_stage(one) for one in found.stages],
        "step": _step(found.speed) if found.speed else None,
        "missing": [problem.what for problem in found.missing],
        "notes": [*notes(found)],
    }


def _stage(one: StageEstimate) -> dict[str, Any]:
    memory = one.memory
    return {
        "stage": one.stage.index,
        "mesh": one.stage.mesh,
        "first_rank": one.stage.first_rank,
        "ranks": len(one.stage.ranks),
        "layers": list(one.stage.chunks),
        "chip": one.chip.name,
        "chip_bytes": one.chip.memory_bytes,
        "terms": [{"name": term.name, "kind": term.kind, "bytes": term.nbytes} for term in memory.terms],
        "allocated_bytes": memory.allocated,
        "reserved_bytes": memory.reserved,
        "device_bytes": memory.device,
        "device_bytes_low": one.low,
        "device_bytes_high": one.high,
        "fits": one.fits,
        "surely_fits": one.surely_fits,
    }


def _step(speed: Speed) -> dict[str, Any]:
    return {
        "seconds": speed.step.seconds,
        "seconds_low": speed.low,
        "seconds_high": speed.high,
        **{f"{name}_s": part for name, part in speed.parts.items()},
        "tokens": speed.tokens,
        "tokens_per_s": speed.tokens_s,
        "tokens_per_s_per_device": speed.tokens_s_device,
        "model_flop": speed.flops,
        "model_flop_per_s_per_device": speed.flop_s_device,
        "mfu": speed.mfu,
    }
