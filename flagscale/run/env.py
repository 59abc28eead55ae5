"""The environment that tells the processes of a run from all others."""

from __future__ import annotations

RUN_ID = "FLAGSCALE_RUN_ID"
HOST_RANK = "FLAGSCALE_HOST_RANK"
"""Told apart as well, because several hosts of a job may be containers that share one table of processes."""

CHIP = "FLAGSCALE_CHIP"
"""The name of the platform on which a rank runs: the worker asks the chip of the same name."""


def run_tags(run_id: str, rank: int) -> dict[str, str]:
    """Return the environment that makes a process one of a run, on the host with this rank."""
    return {RUN_ID: run_id, HOST_RANK: str(rank)}
