"""Check that unequal meshes compute the same training: `python -m benchmarks.hetero_layouts [NAME...]`.

Each layout trains 20 steps (fp32 or bf16, gloo on CPU) from the same weights and on the same data as one
process. Prints the table and, if no names are given, writes it into docs/hetero.md.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.layouts import (
    A2A,
    ALLTOALL,
    BY_LAYER,
    ETP1,
    FULL,
    GROUPED,
    NO_OVERLAP,
    OVERLAP,
    SP,
    ZERO,
    measure,
)
from flagscale.checks.hetero.keys import read
from flagscale_testing.ranks.forked import Run
from flagscale_testing.ranks.layouts import MODELS, Layout

DOCUMENT = Path(__file__).parents[1] / "docs" / "hetero.md"
BEGIN, END = "<!-- hetero layouts: begin -->", "<!-- hetero layouts: end -->"

PER_TOKEN = "--calculate-per-token-loss"
REFINED = "--recompute-granularity-per-stage-micro-batch"
GROUPS_OF_4 = "--microbatch-group-size-per-virtual-pipeline-stage 4"


@dataclass(frozen=True)
class Hetero(Layout):
    """A layout of meshes: `meshes` as in `hetero_process_meshes`, and the layers per stage or chunk."""

    meshes: tuple[int, ...] = ()
    layers: tuple[int | list[int], ...] = ()
    via_cpu: bool = False
    extra: int | None = None

    def run(self, steps: int) -> Run:
        given = {
            "hetero_process_meshes": list(self.meshes),
            "hetero_pipeline_layer_split": list(self.layers) or None,
            "hetero_use_cpu_communication": self.via_cpu,
            "hetero_extra_micro_batches": self.extra,
        }
        words = MODELS[self.model]
        layers = max(int(words[i + 1]) for i, word in enumerate(words) if word == "--num-layers")
        layout, wrong = read(given, layers)
        assert layout is not None, wrong
        run = super().run(steps)
        return replace(run, ranks=layout.world_size, argv=(*run.argv, "--hetero-layout", layout.to_json()))


def M(tp: int = 1, dp: int = 1, *, cp: int = 1, ep: int = 1, pp: int = 1) -> tuple[int, ...]:
    return (tp, cp, ep, dp, pp)


TP2, DP2, ONE = M(tp=2), M(dp=2), M()

OF_MESHES: dict[str, dict[str, Any]] = {
    "cpu": {"options": "", "via_cpu": True},
    "none": {"options": "", "extra": 0},
    "8 extra": {"options": "--micro-batch-size 1", "extra": 8},
}
"""Options that are not arguments of the worker."""

# model, name, options, meshes in order, layers per stage (empty: even)
ROWS: tuple[tuple[str, str, str, tuple[int, ...], tuple[int | list[int], ...]], ...] = (
    ("llama", "tp2 > dp2", "", TP2 + DP2, ()),
    ("llama", "tp2 > dp2, 3 + 1 layers", "", TP2 + DP2, (3, 1)),
    ("llama", "dp2 > tp2", "", DP2 + TP2, ()),
    ("olmo", "tp2 > dp2", "", TP2 + DP2, ()),
    ("llama", "dp2 > 1 rank", "", DP2 + ONE, ()),
    ("llama", "1 rank > dp2, distributed optimizer", ZERO, ONE + DP2, ()),
    ("llama", "tp2 > dp2, distributed optimizer", ZERO, TP2 + DP2, ()),
    ("llama", "dp2 > tp2, distributed optimizer, overlapped", OVERLAP, DP2 + TP2, ()),
    ("llama", "tp2 > dp2, loss per token", PER_TOKEN, TP2 + DP2, ()),
    ("llama", "tp2 > dp2, through host memory", "cpu", TP2 + DP2, ()),
    ("llama", "tp2 > dp2, no extra micro-batch", "none", TP2 + DP2, ()),
    ("llama", "tp2 > 1 rank > 1 rank, 8 extra micro-batches", "8 extra", TP2 + ONE + ONE, (1, 2, 1)),
    ("llama", "tp2 SP > cp2", SP, TP2 + M(cp=2), ()),
    ("llama", "cp2 > tp2 SP", SP, M(cp=2) + TP2, ()),
    ("llama", "tp2 SP x cp2 > dp2", SP, M(tp=2, cp=2) + DP2, ()),
    ("llama", "cp2 > tp2 SP x cp2, a2a", f"{SP} {A2A}", M(cp=2) + M(tp=2, cp=2), ()),
    ("llama", "cp4 > cp2 x dp2, another type in each layer", BY_LAYER, M(cp=4) + M(cp=2, dp=2), ()),
    ("llama", "cp2 > dp2 > 1 rank", "", M(cp=2) + DP2 + ONE, (1, 2, 1)),
    ("llama", "cp4 > cp2 x dp2", "", M(cp=4) + M(cp=2, dp=2), ()),
    ("llama", "tp2 > dp2 > 1 rank", "", TP2 + DP2 + ONE, (1, 2, 1)),
    ("llama", "pp2 > dp2", "", M(pp=2) + DP2, (1, 1, 2)),
    ("llama", "tp2 x pp2 > dp2 x pp2", "", M(tp=2, pp=2) + M(dp=2, pp=2), ()),
    ("llama", "tp2 SP > tp4 SP, 2 groups of keys", SP, TP2 + M(tp=4), ()),
    ("llama", "tp2pp1_tp4pp1_tp2pp1 of FlagScale", "", TP2 + M(tp=4) + TP2, (1, 2, 1)),
    (
        "llama",
        "tp2dp1pp1_tp2dp2pp1_tp1dp2pp1 of FlagScale",
        SP,
        TP2 + M(tp=2, dp=2) + DP2,
        (1, 2, 1),
    ),
    (
        "llama, 8 layers",
        "tp2 > dp2 x pp2 > tp2, 1 + 3 + 2 + 2 layers",
        "",
        TP2 + M(dp=2, pp=2) + TP2,
        (1, 3, 2, 2),
    ),
    ("llama", "tp2 > dp2, interleaved", "", TP2 + DP2, ([1, 1], [1, 1])),
    ("llama", "tp2 SP > cp2, interleaved", SP, TP2 + M(cp=2), ([1, 1], [1, 1])),
    (
        "llama, 8 layers",
        "tp2 > dp2 > 1 rank, interleaved",
        GROUPS_OF_4,
        TP2 + DP2 + ONE,
        ([1, 2], [2, 1], [1, 1]),
    ),
    (
        "llama, 8 layers",
        "tp2 > dp2 > 1 rank, interleaved, sends not overlapped",
        f"{GROUPS_OF_4} {NO_OVERLAP}",
        TP2 + DP2 + ONE,
        ([1, 2], [2, 1], [1, 1]),
    ),
    (
        "llama, 8 layers",
        "dp2 > tp2, interleaved in 3 chunks, distributed optimizer, overlapped",
        OVERLAP,
        DP2 + TP2,
        ([1, 2, 1], [1, 1, 2]),
    ),
    ("gpt", "dp2 > tp2 SP, interleaved, tied embeddings", SP, DP2 + TP2, ([1, 1], [1, 1])),
    ("moe unbalanced", "ep2 x dp2 > tp2 SP, interleaved", SP, M(dp=2, ep=2) + TP2, ([1, 1], [1, 1])),
    ("llama bf16", "tp2 SP > dp2, interleaved", SP, TP2 + DP2, ([1, 1], [1, 1])),
    ("llama", "tp2 > dp2, recompute full", f"{FULL} uniform", TP2 + DP2, ()),
    (
        "llama",
        "tp2 SP > cp2, recompute selective",
        f"{SP} --recompute-granularity selective",
        TP2 + M(cp=2),
        (),
    ),
    (
        "llama",
        "tp2pp1_tp4pp1_tp2pp1 of FlagScale, recompute by stage and micro-batch",
        f"{FULL} uniform {REFINED} [[1,2,0,2,1],[2,4,1]]",
        TP2 + M(tp=4) + TP2,
        (1, 2, 1),
    ),
    (
        "llama",
        "tp2 > dp2, interleaved, recompute by chunk and micro-batch",
        f"{FULL} uniform {REFINED} [[2,4,0],[2,2,1,2,0]]",
        TP2 + DP2,
        ([1, 1], [1, 1]),
    ),
    ("llama fp16", "tp2 SP > dp2", SP, TP2 + DP2, ()),
    ("gpt", "tp2 > dp2, tied embeddings", "", TP2 + DP2, ()),
    ("gpt", "dp2 > tp2 SP > 1 rank, tied embeddings", SP, DP2 + TP2 + ONE, (1, 2, 1)),
    ("gpt", "tp2 > dp2, tied embeddings, distributed optimizer", ZERO, TP2 + DP2, ()),
    ("gpt", "cp2 > tp2, tied embeddings, loss per token", PER_TOKEN, M(cp=2) + TP2, ()),
    ("moe unbalanced", "ep2 x dp2 > 1 rank", "", M(dp=2, ep=2) + ONE, ()),
    ("moe", "ep2 x dp2 > dp2, alltoall dispatch", ALLTOALL, M(dp=2, ep=2) + DP2, ()),
    (
        "moe unbalanced",
        "tp2 SP x ep2 > ep2 x dp2, ETP1",
        f"{SP} {ETP1}",
        M(tp=2, dp=1, ep=2) + M(dp=2, ep=2),
        (),
    ),
    ("moe unbalanced", "ep2 x dp2 > cp2, distributed optimizer", ZERO, M(dp=2, ep=2) + M(cp=2), ()),
    ("moe unbalanced", "ep2 x dp2 > tp2 SP, grouped", f"{SP} {ALLTOALL} {GROUPED}", M(dp=2, ep=2) + TP2, ()),
    ("sigmoid", "ep2 x dp2 > tp2 SP, alltoall dispatch", f"{SP} {ALLTOALL}", M(dp=2, ep=2) + TP2, ()),
    ("sigmoid", "ep2 x dp2 > cp2, distributed optimizer", ZERO, M(dp=2, ep=2) + M(cp=2), ()),
    ("groups", "ep2 x dp2 > dp2", "", M(dp=2, ep=2) + DP2, ()),
    ("packed", "tp2 SP > cp2", SP, TP2 + M(cp=2), ()),
    ("packed, per token", "dp2 > tp2 > 1 rank", "", DP2 + TP2 + ONE, (1, 2, 1)),
    ("qk norm", "tp2 SP > dp2", SP, TP2 + DP2, ()),
    ("mla", "tp2 > dp2", "", TP2 + DP2, ()),
    ("mla", "tp2 SP > cp2", SP, TP2 + M(cp=2), ()),
    ("mla", "dp2 > tp2 SP, interleaved", SP, DP2 + TP2, ([1, 1], [1, 1])),
    ("llama bf16", "tp2 SP > dp2", SP, TP2 + DP2, ()),
    ("llama bf16", "dp2 > tp2 > 1 rank, distributed optimizer", ZERO, DP2 + TP2 + ONE, (1, 2, 1)),
)

LAYOUTS = tuple(
    Hetero(
        f"{model}: {name}",
        model,
        sum(tp * cp * dp * pp for tp, cp, _, dp, pp in zip(*[iter(meshes)] * 5, strict=True)),
        meshes=meshes,
        layers=layers,
        **OF_MESHES.get(options, {"options": options}),
    )
    for model, name, options, meshes, layers in ROWS
)


if __name__ == "__main__":
    sys.exit(measure(LAYOUTS, sys.argv[1:], DOCUMENT, BEGIN, END))
