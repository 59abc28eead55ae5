"""The names of our environment variables, stated only here for launcher, hosts and workers."""

from __future__ import annotations

from flagscale import EXTENSIONS

RUN_ID = "FLAGSCALE_RUN_ID"
"""Identifies the processes of a run."""
HOST_RANK = "FLAGSCALE_HOST_RANK"
"""Distinguishes the hosts of a job: several of them may be containers that share one process table."""
SERVICE = "FLAGSCALE_SERVICE"
"""The name of the service that a process belongs to."""
FAILURE_FILE = "FLAGSCALE_FAILURE_FILE"
"""The file in which the agent of a host reports the rank that failed first (`run.failure`)."""
HEARTBEAT_FILE = "FLAGSCALE_HEARTBEAT_FILE"
"""The file that a rank touches whenever it makes progress."""
PROGRESS_FILE = "FLAGSCALE_PROGRESS_FILE"
"""The file in which a service reports its progress: {"done", "total", "tokens_per_s"}."""
CHANNEL_SECRET = "FLAGSCALE_CHANNEL_SECRET"
"""One of the secrets of a run: the key by which its supervisors authenticate each other."""

CHIP = "FLAGSCALE_CHIP"
"""The name of the platform on which a rank runs; the worker uses the chip of the same name."""


def import_path(source_root: str, further: str = "") -> str:
    """Return PYTHONPATH for the processes of a run that imports FlagScale from a clone.

    Not for installed packages, among which `vllm` is vLLM itself: its modules would hide other packages, as
    `vllm/tokenizers` hides `tokenizers`.
    """
    return ":".join(filter(None, (source_root, *(f"{source_root}/{name}" for name in EXTENSIONS), further)))


def run_tags(run_id: str, rank: int) -> dict[str, str]:
    """Return the environment that marks a process as part of a run, on the host with this rank."""
    return {RUN_ID: run_id, HOST_RANK: str(rank)}
