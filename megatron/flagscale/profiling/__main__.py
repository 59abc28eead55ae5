"""One rank of a profile: `python -m megatron.flagscale.profiling`, under torchrun.

The first rank prints one JSON object a line: what the ranks are, each point that was measured or left out,
each finished part with its rows, and each part that this chip does not have.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from flagscale.planner.curves import COLLECTIVES
from megatron.flagscale.chips import chip
from megatron.flagscale.profiling import kernels
from megatron.flagscale.profiling.clock import QUICK, THOROUGH, Clock, UnsupportedError
from megatron.flagscale.profiling.collectives import BYTES, collectives

Part = Callable[[Clock], Iterator[list[float]]]
_COPIED = {True: 1 << 25, False: 1 << 29}
"""Bytes by whether it has to be quick: more than the caches hold."""


def parts(ranks: int) -> dict[str, tuple[Part, int]]:
    """Return what is measured: by the path below `measured`, with the number of its points."""
    found: dict[str, tuple[Part, int]] = {}
    for precision in kernels.DTYPES:
        found[f"gemm/{precision}"] = partial(kernels.products, precision=precision), len(kernels.SIZES) ** 3
    for precision in ("bfloat16", "float16", "float32"):
        points = len(kernels.GROUPS) * len(kernels.GROUPED_ROWS) * len(kernels.GROUPED_WIDTHS) ** 2
        found[f"grouped_gemm/{precision}"] = partial(kernels.grouped, precision=precision), points
        points = len(kernels.SEQUENCES) * len(kernels.HEADS) * len(kernels.WIDTHS)
        found[f"attention/{precision}"] = partial(kernels.attention, precision=precision), points
    for kind in COLLECTIVES:
        for members in _groups(ranks) if kind != "send" else _groups(min(ranks, 2)):
            part = partial(collectives, kind=kind, ranks=members)
            found[f"collectives/{kind}/{members}"] = part, len(BYTES)
    return found


def _groups(ranks: int) -> list[int]:
    """Return the sizes of the groups to measure: powers of two, and all ranks."""
    powers = [2**power for power in range(1, ranks.bit_length()) if 2**power < ranks]
    return [*powers, ranks] if ranks > 1 else []


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--without", default="", help="parts that are known already")
    parser.add_argument("--only", default="", help="parts to measure, or the beginnings of their paths")
    given = parser.parse_args()
    torch.set_grad_enabled(True)
    ranks, local_rank = (int(os.environ.get(name, default)) for name, default in _LAUNCHED.items())
    chip().set_device(local_rank)
    if ranks > 1:
        dist.init_process_group(backend=chip().backend)
    clock = Clock(QUICK if given.quick else THOROUGH)
    known, only = given.without.split(","), tuple(given.only.split(","))

    def is_wanted(name: str) -> bool:
        return name not in known and any(f"{name}/".startswith(f"{one}/" if one else "") for one in only)

    wanted = {name: part for name, part in parts(ranks).items() if is_wanted(name)}
    report(
        device=_device_name(), memory_bytes=_memory_bytes(ranks), points=sum(n for _, n in wanted.values())
    )
    if is_wanted("hbm_gb_s"):
        report(part="hbm_gb_s", value=kernels.copied_bytes_s(clock, _COPIED[given.quick]) / 1e9)
    if is_wanted("launch_s"):
        report(part="launch_s", value=kernels.launch_s(clock))
    for name, (part, points) in wanted.items():
        rows = []
        clock.begin_part()
        try:
            for row in part(clock):
                rows += [row] if row else []
                report(done=1)
                points -= 1
        except UnsupportedError as error:
            if rows:
                raise
            report(done=points, absent=name, why=str(error))
            continue
        report(part=name, value=rows)
    if ranks > 1:
        dist.destroy_process_group()


_LAUNCHED = {"WORLD_SIZE": "1", "LOCAL_RANK": "0"}


def report(**values: Any) -> None:
    """Print a line, on the first rank only."""
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps(values), flush=True)


def _device_name() -> str:
    device = chip().device()
    name = getattr(torch.get_device_module(device), "get_device_name", None)
    return str(name(device)) if name else chip().name


def _memory_bytes(ranks: int) -> int:
    """Return what a rank can allocate; ranks on the host's processors share its memory."""
    if chip().is_host_processor:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // ranks
    free, _ = torch.accelerator.get_memory_info()
    return int(free)


if __name__ == "__main__":
    main()
