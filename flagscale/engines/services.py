"""What jobs of services, which torchrun does not start, refuse in `experiment.runner`."""

from __future__ import annotations

from collections.abc import Iterator

from flagscale.config.schema import PASSED_TO_TORCHRUN, Runner
from flagscale.config.source_map import SourceMap
from flagscale.errors import Problem

_OF_TORCHRUN = {"rdzv_id", "rdzv_backend", "rdzv_endpoint", "local_addr", "standalone", *PASSED_TO_TORCHRUN}
"""Keys that such a job would ignore."""


def runner_problems(runner: Runner, kind: str, source_map: SourceMap) -> Iterator[Problem]:
    """Yield the keys that have no effect in a job of this kind: `vLLM job`."""
    if ":" in str(runner.nnodes or ""):
        where = source_map.where("experiment.runner.nnodes")
        yield Problem(f"a {kind} needs all its hosts: give one number", where)
    for key in sorted(_OF_TORCHRUN & runner.model_fields_set):
        where = source_map.where(f"experiment.runner.{key}")
        yield Problem(f"only torchrun reads it, and {kind}s do not use torchrun", where, "remove the key")
