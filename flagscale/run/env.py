"""The names of our environment variables, each stated here only, for launcher, hosts and workers alike."""

from __future__ import annotations

RUN_ID = "FLAGSCALE_RUN_ID"
"""Tells the processes of a run from all others."""
HOST_RANK = "FLAGSCALE_HOST_RANK"
"""Tells hosts of a job apart, because several of them may be containers that share one table of processes."""
FAILURE_FILE = "FLAGSCALE_FAILURE_FILE"
"""The file in which the agent of a host reports the rank that failed first (`run.failure`)."""
HEARTBEAT_FILE = "FLAGSCALE_HEARTBEAT_FILE"
"""The file that a rank touches whenever it goes on."""
PROGRESS_FILE = "FLAGSCALE_PROGRESS_FILE"
"""The file in which a service reports its progress: {"done", "total", "tokens_per_s"}."""
CHANNEL_SECRET = "FLAGSCALE_CHANNEL_SECRET"
"""Among the secrets of a run: the key by which its supervisors authenticate each other."""

CHIP = "FLAGSCALE_CHIP"
"""The name of the platform on which a rank runs: the worker asks the chip of the same name."""


def run_tags(run_id: str, rank: int) -> dict[str, str]:
    """Return the environment that makes a process one of a run, on the host with this rank."""
    return {RUN_ID: run_id, HOST_RANK: str(rank)}
