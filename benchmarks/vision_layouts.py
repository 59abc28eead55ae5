"""Check layouts of models with pictures: `python -m benchmarks.vision_layouts [NAME...]`.

Each layout trains 20 steps (fp32, or bf16 if stated, no dropout, gloo on CPU) from the same weights and on
the same samples as one process. Prints the table and, if no names are given, writes it into
docs/multimodal.md.
"""

from __future__ import annotations

import sys

from benchmarks.layouts import (
    A2A,
    CUT,
    DOCUMENT,
    EP2,
    ETP1,
    FULL,
    NORMS,
    OVERLAP,
    PP4,
    SELECTIVE,
    SP,
    VPP2,
    ZERO,
    measure,
)
from flagscale_testing.ranks.layouts import CP2, PP2, TP2, Layout

BEGIN, END = "<!-- vision layouts: begin -->", "<!-- vision layouts: end -->"

LAYOUTS = tuple(
    Layout(f"{model}: {name}", model, ranks, options)
    for model, name, ranks, options in (
        ("onevision", "TP2", 2, TP2),
        ("onevision", "TP2 SP", 2, f"{TP2} {SP}"),
        ("onevision", "PP2", 2, PP2),
        ("onevision", "PP4", 4, PP4),
        ("onevision", "PP2 interleaved", 2, f"{PP2} {VPP2}"),
        ("onevision", "PP2 uneven (1 layer, 3 layers)", 2, f"{PP2} {CUT} Et|tttL"),
        ("onevision", "DP2", 2, ""),
        ("onevision", "DP2 distributed optimizer", 2, ZERO),
        ("onevision", "DP2 distributed optimizer, overlapped", 2, OVERLAP),
        ("onevision", "CP2 ring", 2, CP2),
        ("onevision", "CP2 a2a", 2, f"{CP2} {A2A}"),
        ("onevision", "TP2 SP CP2", 4, f"{TP2} {SP} {CP2}"),
        ("onevision", "TP2 SP PP2 distributed optimizer", 4, f"{TP2} {SP} {PP2} {ZERO}"),
        ("onevision", "TP2 SP PP2 interleaved", 4, f"{TP2} {SP} {PP2} {VPP2}"),
        ("onevision", "DP2 CP2 distributed optimizer", 4, f"{CP2} {ZERO}"),
        ("onevision", "PP2 CP2", 4, f"{PP2} {CP2}"),
        ("onevision", "recompute full, uniform", 1, f"{FULL} uniform"),
        ("onevision", "recompute selective", 1, SELECTIVE),
        ("onevision", "TP2 SP, recompute of the norms", 2, f"{TP2} {SP} {NORMS}"),
        ("onevision, tied", "PP2, embeddings on two stages", 2, PP2),
        ("onevision, packed", "TP2 SP", 2, f"{TP2} {SP}"),
        ("onevision, packed", "CP2", 2, CP2),
        ("onevision, packed", "PP4, samples masked on middle stages", 4, PP4),
        ("onevision, packed", "PP2 CP2, samples masked on all stages", 4, f"{PP2} {CP2}"),
        ("onevision, per token", "DP2 CP2", 4, CP2),
        ("onevision, projector only", "TP2 SP", 2, f"{TP2} {SP}"),
        ("onevision, projector only", "PP2, nothing to train on the last stage", 2, PP2),
        ("onevision, projector only", "DP2 PP2 distributed optimizer, overlapped", 4, f"{PP2} {OVERLAP}"),
        ("onevision, frozen tower", "TP2 SP PP2", 4, f"{TP2} {SP} {PP2}"),
        ("onevision, frozen language model", "PP2 interleaved", 2, f"{PP2} {VPP2}"),
        ("onevision, experts", "EP2", 2, EP2),
        ("onevision, experts", "EP2 PP2", 4, f"{EP2} {PP2}"),
        ("onevision, experts, one length", "EP2", 2, EP2),
        ("onevision, experts, one length", "EP2 TP2 SP, ETP1", 2, f"{EP2} {TP2} {SP} {ETP1}"),
        ("llava", "TP2 SP", 2, f"{TP2} {SP}"),
        ("llava", "PP2", 2, PP2),
        ("llava", "CP2", 2, CP2),
        ("llava", "DP2 distributed optimizer", 2, ZERO),
        ("onevision bf16", "TP2 SP", 2, f"{TP2} {SP}"),
        ("onevision bf16", "PP2", 2, PP2),
        ("onevision bf16", "DP2 distributed optimizer", 2, ZERO),
    )
)

if __name__ == "__main__":
    sys.exit(measure(LAYOUTS, sys.argv[1:], DOCUMENT.with_name("multimodal.md"), BEGIN, END))
