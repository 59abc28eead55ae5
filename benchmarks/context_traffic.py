"""Count what a rank sends in a layer's attention, by `cp_comm_type`: `python -m benchmarks.context_traffic`.

Runs the attention of Llama-3 70B and Llama-2 7B, forward and backward, in bf16 on 2, 4 and 8 context parallel
ranks (gloo), with few tokens: everything that is sent grows linearly with them. The counts are compared with
formulas, and the table is printed. It does not count how much of it overlaps with computation.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import gcd
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from flagscale_testing.ranks.functions import on_ranks

MODELS = {"Llama-3 70B (64 heads, 8 groups)": (64, 8), "Llama-2 7B (32 heads)": (32, 32)}
RANKS, WAYS, WIDTH, TOKENS = (2, 4, 8), ("p2p", "all_gather", "a2a"), 128, 32


def formula(way: str, ranks: int, heads: int, groups: int) -> tuple[int, float]:
    """Return messages, and bytes per token of the whole sequence, that a rank sends in a layer and step.

    Gradients of keys and values travel in fp32, but not those of exchanged heads.
    """
    keys, others = 2 * groups * WIDTH, ranks - 1
    if way == "a2a":  # queries, keys and values in one message per rank, the output in another, and back
        sent = 2 * heads * WIDTH + keys * ranks // gcd(ranks, groups)
        return 4 * others, 2 * 2 * sent * others / ranks**2
    forward = 2 * keys * others / ranks  # bf16, and again in the backward pass
    home = 1 if way == "p2p" else 0  # gradients on the ring take one more step, to the owner
    return 3 * others + home, 2 * forward + 4 * keys * (others + home) / ranks


class Counter:
    """Messages and bytes that this rank has sent."""

    def __init__(self) -> None:
        self.messages, self.bytes = 0, 0

    def add(self, messages: int, size: float) -> None:
        self.messages += messages
        self.bytes += int(size)

    @contextmanager
    def counting(self, ranks: int) -> Iterator[None]:
        def wrap(name: str, count: Callable[..., None]) -> Any:
            original = getattr(dist, name)

            def call(*args: Any, **keywords: Any) -> Any:
                count(*args)
                return original(*args, **keywords)

            return mock.patch.object(dist, name, call)

        def of_ring(posted: list[dist.P2POp]) -> None:
            for one in posted:
                if one.op is dist.isend:
                    self.add(1, one.tensor.nbytes)

        with (
            wrap("batch_isend_irecv", of_ring),
            wrap(
                "all_to_all_single", lambda out, sent: self.add(ranks - 1, sent.nbytes / ranks * (ranks - 1))
            ),
            wrap("all_gather_into_tensor", lambda out, sent: self.add(ranks - 1, sent.nbytes * (ranks - 1))),
            wrap("reduce_scatter_tensor", lambda own, sent: self.add(ranks - 1, own.nbytes * (ranks - 1))),
        ):
            yield


def count(way: str, heads: int, groups: int, group: dist.ProcessGroup) -> tuple[int, float]:
    """Return what `formula` does, from a run."""
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.transformer_config import TransformerConfig

    from megatron.flagscale.layers.attention import Attention

    config = TransformerConfig(
        num_layers=1, hidden_size=heads * WIDTH, num_attention_heads=heads, num_query_groups=groups
    )
    module = Attention(
        *(config, 1, AttnMaskType.causal, "self", 0.0),
        cp_comm_type=way,
        pg_collection=SimpleNamespace(tp=SimpleNamespace(size=lambda: 1), cp=group),
    )
    local = TOKENS // group.size()
    given = [
        torch.randn(local, 1, number, WIDTH, dtype=torch.bfloat16, requires_grad=True)
        for number in (heads, groups, groups)
    ]
    counter = Counter()
    with counter.counting(group.size()):
        module(*given, None).sum().backward()
    return counter.messages, counter.bytes / TOKENS


def run_rank(rank: int, folder: Path) -> None:
    found: dict[str, tuple[int, float]] = {}
    for ranks in RANKS:
        group = dist.new_group(list(range(ranks)))
        if rank < ranks:
            found |= {
                f"{model} {ranks} {way}": count(way, *shape, group)
                for model, shape in MODELS.items()
                for way in WAYS
            }
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found))


def main() -> int:
    from megatron.flagscale.bootstrap import patch_engine

    patch_engine()
    with tempfile.TemporaryDirectory() as name:
        if code := on_ranks(max(RANKS), Path(name), lambda rank: run_rank(rank, Path(name))):
            return code
        found = json.loads((Path(name) / "found.json").read_text())
    print("| model | ranks | `p2p` | `all_gather` | `a2a` | `a2a` : `p2p` |\n|---|---|---|---|---|---|")
    wrong = []
    for model, shape in MODELS.items():
        for ranks in RANKS:
            counts = {way: found[f"{model} {ranks} {way}"] for way in WAYS}
            wrong += [(model, ranks, way) for way in WAYS if [*formula(way, ranks, *shape)] != counts[way]]
            cells = [f"{size / 1024:.1f} KiB in {messages}" for messages, size in counts.values()]
            ratio = counts["a2a"][1] / counts["p2p"][1]
            print(f"| {model} | {ranks} | {' | '.join(cells)} | {ratio:.2f} |")
    for model, ranks, way in wrong:
        print(f"{model}, {ranks}, {way}: counted {found[f'{model} {ranks} {way}']}")
        print(f"  by formula {formula(way, ranks, *MODELS[model])}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
