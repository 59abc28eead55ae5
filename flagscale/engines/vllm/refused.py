"""vLLM keys that cannot be given: those that FlagScale sets itself, and those that vLLM no longer has."""

from __future__ import annotations

from collections.abc import Mapping

from flagscale.config.engine_args import FlatKey
from flagscale.config.source_map import SourceMap
from flagscale.engines.vllm.catalog import vllm_catalog
from flagscale.errors import Problem

REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *("headless", "nnodes", "node_rank", "master_addr", "master_port", "device_ids"),
            *("data_parallel_rank", "data_parallel_start_rank", "data_parallel_size_local"),
            *("data_parallel_address", "data_parallel_rpc_port"),
        ),
        "FlagScale derives it from the hosts and the parallel degrees",
    ),
    **dict.fromkeys(
        (
            *("data_parallel_external_lb", "data_parallel_hybrid_lb"),
            "data_parallel_multi_port_external_lb",
        ),
        "one server answers for all its data parallel ranks; use `instances` for several",
    ),
    "shutdown_timeout": "it is experiment.runner.stop_grace",
    "config": "write the keys of that file here",
    "grpc": "only HTTP servers are started",
    "uds": "only HTTP servers with a port are started",
}
_ROPE = "use `hf_overrides: {rope_parameters: {...}}`"
_SPECULATIVE = "use `speculative_config`"

REMOVED: Mapping[str, str] = {
    "rope_scaling": _ROPE,
    "rope_theta": _ROPE,
    "guided_decoding_backend": "use `structured_outputs_config: {backend: ...}`",
    "task": "use `runner` and `convert`",
    "speculative_model": _SPECULATIVE,
    "num_speculative_tokens": _SPECULATIVE,
    "cuda_graph_sizes": "use `cudagraph_capture_sizes`",
    "disable_log_requests": "remove it: requests are logged only with `enable_log_requests`",
    "swap_space": "remove it: requests that lose their place are computed again",
}
"""Arguments that vLLM had before 0.32 -> what to write instead: names that are alike would mislead."""


def refuse(flat_keys: list[FlatKey], source_map: SourceMap, problems: list[Problem]) -> list[FlatKey]:
    """Return the flat keys that a user may give; add the others, if they have a value, to `problems`."""
    version = vllm_catalog().server.version
    for flat_key in flat_keys:
        name, where = flat_key.name, source_map.where(flat_key.path)
        if name in REFUSED and flat_key.value not in (None, False):
            problems.append(Problem(f"`{name}` cannot be given here", where, REFUSED[name]))
        elif name in REMOVED:
            problems.append(
                Problem(f"vllm {version} no longer has the argument `{name}`", where, REMOVED[name])
            )
    return [flat_key for flat_key in flat_keys if flat_key.name not in {*REFUSED, *REMOVED}]
