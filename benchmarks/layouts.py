"""Check that every parallel layout computes the same training: `python -m benchmarks.layouts [NAME...]`.

Each layout trains 20 steps (fp32, or bf16 if stated, no dropout, gloo on CPU) from the same weights and on
the same data as one process. Prints the table and, if no names are given, writes it into docs/layouts.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from flagscale_testing.ranks.layouts import CP2, PP2, TP2, Difference, Layout, compare

DOCUMENT = Path(__file__).parents[1] / "docs" / "layouts.md"
BEGIN, END = "<!-- layouts: begin -->", "<!-- layouts: end -->"

SP = "--sequence-parallel"
ALLTOALL = "--moe-token-dispatcher-type alltoall"
EP2 = "--expert-model-parallel-size 2"
ETP1 = "--expert-tensor-parallel-size 1"
PP4 = "--pipeline-model-parallel-size 4"
VPP2 = "--num-virtual-stages-per-pipeline-rank 2"
A2A = "--cp-comm-type a2a"
NESTED = "--cp-comm-type a2a+p2p --hierarchical-context-parallel-sizes 2 2"
BY_LAYER = "--cp-comm-type a2a p2p all_gather a2a"
CP4 = "--context-parallel-size 4"
SELECTIVE = "--recompute-granularity selective"
NO_OVERLAP = "--no-overlap-p2p-communication"
GROUPED = "--moe-grouped-gemm"
ZERO = "--use-distributed-optimizer"
OVERLAP = f"{ZERO} --overlap-grad-reduce --overlap-param-gather"
NORMS = "--recompute-granularity selective --recompute-modules layernorm"
UP = "--recompute-granularity selective --recompute-modules mla_up_proj"
CUT = "--pipeline-model-parallel-layout"
SELECTIVE_MOE = "--recompute-granularity selective --recompute-modules moe"
FULL = "--recompute-granularity full --recompute-num-layers 1 --recompute-method"

# model, name, ranks, options; "llama" has RMSNorm, SwiGLU, rotary embeddings, GQA 4:2, untied embeddings.
LAYOUTS = tuple(
    Layout(f"{model}: {name}", model, ranks, options)
    for model, name, ranks, options in (
        ("llama", "TP2", 2, TP2),
        ("llama", "TP2 SP", 2, f"{TP2} {SP}"),
        ("llama", "TP4 SP, 2 groups of keys", 4, f"--tensor-model-parallel-size 4 {SP}"),
        ("llama", "PP2", 2, PP2),
        ("llama", "PP4", 4, PP4),
        ("llama", "PP2 interleaved", 2, f"{PP2} {VPP2}"),
        ("llama, 8 layers", "PP4 interleaved", 4, f"{PP4} {VPP2}"),
        ("llama, 8 layers", "PP4 interleaved, sends not overlapped", 4, f"{PP4} {VPP2} {NO_OVERLAP}"),
        ("llama", "PP2 uneven (3 layers, 1 layer)", 2, f"{PP2} --pipeline-model-parallel-layout Ettt|tL"),
        ("llama", "DP2", 2, ""),
        ("llama", "DP2 distributed optimizer", 2, ZERO),
        ("llama", "DP2 distributed optimizer, overlapped", 2, OVERLAP),
        ("llama", "CP2 ring", 2, CP2),
        ("llama", "CP2 all-gather", 2, f"{CP2} --cp-comm-type all_gather"),
        ("llama", "CP4 ring", 4, CP4),
        ("llama", "CP2 a2a", 2, f"{CP2} {A2A}"),
        ("llama", "CP4 a2a, 2 groups of keys", 4, f"{CP4} {A2A}"),
        ("llama", "CP4 a2a+p2p", 4, f"{CP4} {NESTED}"),
        ("llama", "CP2, another type in each layer", 2, f"{CP2} {BY_LAYER}"),
        ("llama", "TP2 PP2", 4, f"{TP2} {PP2}"),
        ("llama", "TP2 SP PP2 distributed optimizer", 4, f"{TP2} {SP} {PP2} {ZERO}"),
        ("llama", "TP2 SP PP2 interleaved", 4, f"{TP2} {SP} {PP2} {VPP2}"),
        ("llama", "TP2 SP CP2", 4, f"{TP2} {SP} {CP2}"),
        ("llama", "TP2 SP CP2 a2a, 2 groups of keys", 4, f"{TP2} {SP} {CP2} {A2A}"),
        ("llama", "DP2 TP2", 4, TP2),
        ("llama", "DP2 CP2 distributed optimizer", 4, f"{CP2} {ZERO}"),
        ("llama", "DP2 CP2 a2a distributed optimizer", 4, f"{CP2} {A2A} {ZERO}"),
        ("llama", "PP2 CP2", 4, f"{PP2} {CP2}"),
        ("llama", "PP2 CP2, another type in each layer", 4, f"{PP2} {CP2} {BY_LAYER}"),
        ("llama", "recompute full, uniform", 1, f"{FULL} uniform"),
        ("llama", "recompute full, block", 1, f"{FULL} block"),
        ("llama", "recompute selective", 1, SELECTIVE),
        ("llama", "recompute of the norms", 1, NORMS),
        ("llama", "TP2 SP, recompute of the norms", 2, f"{TP2} {SP} {NORMS}"),
        ("llama", "TP2 SP recompute full", 2, f"{TP2} {SP} {FULL} uniform"),
        ("llama", "CP2 recompute selective", 2, f"{CP2} {SELECTIVE}"),
        ("llama", "CP2 a2a recompute selective", 2, f"{CP2} {A2A} {SELECTIVE}"),
        ("llama", "CP2 a2a recompute full", 2, f"{CP2} {A2A} {FULL} uniform"),
        ("llama", "8 micro-batches", 1, "--micro-batch-size 1"),
        ("gpt", "TP2 SP", 2, f"{TP2} {SP}"),
        ("gpt", "PP2, tied embeddings on two stages", 2, PP2),
        ("gpt", "CP2", 2, CP2),
        ("gpt", "CP2 a2a", 2, f"{CP2} {A2A}"),
        ("gpt", "TP2 SP PP2 distributed optimizer", 4, f"{TP2} {SP} {PP2} {ZERO}"),
        ("moe", "DP2", 2, ""),
        ("moe", "EP2", 2, EP2),
        ("moe", "EP2, all-gather dispatch", 2, f"{EP2} --moe-token-dispatcher-type allgather"),
        ("moe", "EP2, alltoall dispatch", 2, f"{EP2} {ALLTOALL}"),
        ("moe", "EP2 distributed optimizer", 2, f"{EP2} {ZERO}"),
        ("moe", "EP2 PP2", 4, f"{EP2} {PP2}"),
        ("moe", "EP2 CP2", 2, f"{EP2} {CP2}"),
        ("moe", "EP2 CP2 a2a", 2, f"{EP2} {CP2} {A2A}"),
        ("moe", "EP2 TP2 SP, ETP1", 2, f"{EP2} {TP2} {SP} {ETP1}"),
        ("moe", "TP2 SP, ETP2", 2, f"{TP2} {SP}"),
        ("moe", "TP2 SP, ETP2, alltoall dispatch", 2, f"{TP2} {SP} {ALLTOALL}"),
        ("moe", "EP2 TP2 SP, ETP2, alltoall dispatch", 4, f"{EP2} {TP2} {SP} {ALLTOALL}"),
        ("moe", "grouped", 1, GROUPED),
        ("moe", "EP2 TP2 SP, ETP2, alltoall dispatch, grouped", 4, f"{EP2} {TP2} {SP} {ALLTOALL} {GROUPED}"),
        ("packed", "Megatron's local layers, masks in memory", 1, "--transformer-impl local"),
        ("packed", "recompute full, uniform", 1, f"{FULL} uniform"),
        ("packed", "TP2 SP", 2, f"{TP2} {SP}"),
        ("packed", "CP2", 2, CP2),
        ("packed", "CP2 DP2", 4, CP2),
        ("packed", "CP2 a2a", 2, f"{CP2} {A2A}"),
        ("packed", "CP4 a2a+p2p", 4, f"{CP4} {NESTED}"),
        ("packed", "PP4, documents masked on middle stages", 4, PP4),
        ("qk norm", "TP2", 2, TP2),
        ("qk norm", "TP2 SP CP2", 4, f"{TP2} {SP} {CP2}"),
        ("qk norm", "TP2 SP CP2 a2a", 4, f"{TP2} {SP} {CP2} {A2A}"),
        ("norms after", "TP2", 2, TP2),
        ("olmo", "TP2", 2, TP2),
        ("olmo", "TP2 SP PP2 distributed optimizer", 4, f"{TP2} {SP} {PP2} {ZERO}"),
        ("olmo", "CP2 a2a", 2, f"{CP2} {A2A}"),
        ("norms after", "TP2 SP recompute full", 2, f"{TP2} {SP} {FULL} uniform"),
        ("norms after", "recompute selective", 1, SELECTIVE),
        ("norms around", "TP2 SP, recompute of the norms", 2, f"{TP2} {SP} {NORMS}"),
        ("norms around", "PP2", 2, PP2),
        ("norms around", "CP2", 2, CP2),
        ("gemma", "TP2 SP CP2", 4, f"{TP2} {SP} {CP2}"),
        ("gemma", "CP2 a2a", 2, f"{CP2} {A2A}"),
        ("gemma", "PP2, recompute selective", 2, f"{PP2} {SELECTIVE}"),
        ("gemma, packed", "CP2", 2, CP2),
        ("window", "CP2", 2, CP2),
        ("window", "CP2 a2a", 2, f"{CP2} {A2A}"),
        ("window", "CP4 a2a+p2p", 4, f"{CP4} {NESTED}"),
        ("shared", "EP2 TP2 SP, ETP1", 2, f"{EP2} {TP2} {SP} {ETP1}"),
        ("mla", "TP2", 2, TP2),
        ("mla", "TP2 SP", 2, f"{TP2} {SP}"),
        ("mla", "TP4 SP", 4, f"--tensor-model-parallel-size 4 {SP}"),
        ("mla", "PP2", 2, PP2),
        ("mla", "PP2 interleaved", 2, f"{PP2} {VPP2}"),
        ("mla", "DP2", 2, ""),
        ("mla", "DP2 distributed optimizer", 2, ZERO),
        ("mla", "CP2 ring", 2, CP2),
        ("mla", "CP2 all-gather", 2, f"{CP2} --cp-comm-type all_gather"),
        ("mla", "CP4 ring", 4, "--context-parallel-size 4"),
        ("mla", "TP2 SP CP2", 4, f"{TP2} {SP} {CP2}"),
        ("mla", "CP2 a2a", 2, f"{CP2} {A2A}"),
        ("mla", "TP2 SP CP2 a2a", 4, f"{TP2} {SP} {CP2} {A2A}"),
        ("mla", "CP4 a2a+p2p", 4, f"{CP4} {NESTED}"),
        ("mla", "CP2 a2a recompute selective", 2, f"{CP2} {A2A} {SELECTIVE}"),
        ("mla", "TP2 SP PP2 distributed optimizer", 4, f"{TP2} {SP} {PP2} {ZERO}"),
        ("mla", "recompute full, uniform", 1, f"{FULL} uniform"),
        ("mla", "recompute selective", 1, SELECTIVE),
        ("mla", "recompute of the projections from the latents", 1, UP),
        (
            "mla",
            "TP2 SP CP2, recompute of the projections and attention",
            4,
            f"{TP2} {SP} {CP2} {UP} core_attn",
        ),
        ("mla", "TP2 SP, recompute of projections and norms", 2, f"{TP2} {SP} {UP} layernorm"),
        ("mla", "8 micro-batches", 1, "--micro-batch-size 1"),
        ("mla yarn", "TP2 SP", 2, f"{TP2} {SP}"),
        ("mla yarn", "CP2 ring", 2, CP2),
        ("mla plain", "TP2", 2, TP2),
        ("mla plain", "TP2 SP CP2", 4, f"{TP2} {SP} {CP2}"),
        ("mla packed", "TP2 SP", 2, f"{TP2} {SP}"),
        ("mla packed", "CP2", 2, CP2),
        ("mla packed", "recompute of the projections from the latents", 1, UP),
        ("mla experts", "EP2, alltoall dispatch", 2, f"{EP2} {ALLTOALL}"),
        ("mla experts", "EP2 TP2 SP, ETP1", 2, f"{EP2} {TP2} {SP} {ETP1}"),
        ("mla experts", "EP2 PP2", 4, f"{EP2} {PP2}"),
        ("mla experts", "EP2 CP2", 2, f"{EP2} {CP2}"),
        ("mla dropout", "recompute selective", 1, SELECTIVE),
        ("mla bf16", "TP2 SP", 2, f"{TP2} {SP}"),
        ("mla bf16", "CP2 ring", 2, CP2),
        ("sigmoid", "DP2 distributed optimizer", 2, ZERO),
        ("sigmoid", "EP2, all-gather dispatch", 2, f"{EP2} --moe-token-dispatcher-type allgather"),
        ("sigmoid", "EP2, alltoall dispatch", 2, f"{EP2} {ALLTOALL}"),
        ("sigmoid", "EP2 TP2 SP, ETP1", 2, f"{EP2} {TP2} {SP} {ETP1}"),
        ("sigmoid", "TP2 SP, ETP2, alltoall dispatch", 2, f"{TP2} {SP} {ALLTOALL}"),
        ("sigmoid", "PP2 interleaved", 2, f"{PP2} {VPP2}"),
        ("sigmoid", "CP2", 2, CP2),
        ("sigmoid", "8 micro-batches", 1, "--micro-batch-size 1"),
        ("sigmoid", "recompute full, uniform", 1, f"{FULL} uniform"),
        ("sigmoid", "recompute selective, experts", 1, SELECTIVE_MOE),
        ("groups", "DP2", 2, ""),
        ("groups", "EP2, alltoall dispatch", 2, f"{EP2} {ALLTOALL}"),
        ("groups", "EP2 TP2 SP, ETP1", 2, f"{EP2} {TP2} {SP} {ETP1}"),
        ("groups", "CP2", 2, CP2),
        ("groups", "PP2", 2, PP2),
        ("sinks", "EP2 TP2 SP, ETP1", 2, f"{EP2} {TP2} {SP} {ETP1}"),
        ("sinks", "TP2 SP, ETP1", 2, f"{TP2} {SP} {ETP1}"),
        ("sinks", "EP2 PP2", 4, f"{EP2} {PP2}"),
        ("sinks, packed", "EP2 TP2 SP, ETP1", 2, f"{EP2} {TP2} {SP} {ETP1}"),
        ("gated", "EP2 TP2 SP, ETP1", 2, f"{EP2} {TP2} {SP} {ETP1}"),
        ("gated", "CP2", 2, CP2),
        ("mtp", "TP2", 2, TP2),
        ("mtp", "TP2 SP", 2, f"{TP2} {SP}"),
        ("mtp", "PP2", 2, PP2),
        ("mtp", "PP2 interleaved", 2, f"{PP2} {VPP2}"),
        ("mtp", "PP4, head and loss without a layer", 4, f"{PP4} {CUT} Et|tt|t|mL"),
        ("mtp", "PP4, head apart from the loss", 4, f"{PP4} {CUT} Et|tt|tm|L"),
        ("mtp", "DP2 distributed optimizer", 2, ZERO),
        ("mtp", "CP2", 2, CP2),
        ("mtp", "recompute full, uniform", 1, f"{FULL} uniform"),
        ("mtp", "TP2 SP PP2 distributed optimizer", 4, f"{TP2} {SP} {PP2} {ZERO}"),
        ("mtp, tied", "TP2 SP", 2, f"{TP2} {SP}"),
        ("mtp, tied", "PP2 distributed optimizer", 2, f"{PP2} {ZERO}"),
        ("mtp, tied", "PP4, heads apart from the loss", 4, f"{PP4} {CUT} Et|tt|tmm|L"),
        ("mtp, tied", "CP2", 2, CP2),
        ("mtp, packed", "TP2 SP", 2, f"{TP2} {SP}"),
        ("mtp, packed", "CP2", 2, CP2),
        ("mtp, packed", "PP2", 2, PP2),
        ("mtp, per token", "CP2", 2, CP2),
        ("mtp, per token", "DP2", 2, ""),
        ("deepseek", "TP2 SP, ETP2", 2, f"{TP2} {SP}"),
        ("deepseek", "EP2, alltoall dispatch", 2, f"{EP2} {ALLTOALL}"),
        ("deepseek", "EP2 PP2", 4, f"{EP2} {PP2}"),
        ("deepseek", "EP2 PP2 interleaved", 4, f"{EP2} {PP2} {VPP2}"),
        ("deepseek", "PP4, head apart from the loss", 4, f"{PP4} {CUT} Et|tt|tm|L"),
        ("deepseek", "EP2 CP2", 2, f"{EP2} {CP2}"),
        ("deepseek", "EP2 TP2 SP, ETP2, grouped", 4, f"{EP2} {TP2} {SP} {ALLTOALL} {GROUPED}"),
        ("deepseek", "EP2 TP2 SP PP2 distributed optimizer", 4, f"{EP2} {TP2} {SP} {ETP1} {PP2} {ZERO}"),
        ("deepseek", "EP2, shared experts overlapped", 2, f"{EP2} {ALLTOALL} --moe-shared-expert-overlap"),
        ("deepseek", "recompute full, uniform", 1, f"{FULL} uniform"),
        ("deepseek", "grouped", 1, GROUPED),
        ("deepseek mla", "TP2 SP", 2, f"{TP2} {SP}"),
        ("deepseek mla", "EP2 TP2 SP, ETP1", 2, f"{EP2} {TP2} {SP} {ETP1}"),
        ("deepseek mla", "EP2 CP2 a2a", 2, f"{EP2} {CP2} {A2A}"),
        ("deepseek mla", "EP2 PP2 interleaved", 4, f"{EP2} {PP2} {VPP2}"),
        ("deepseek mla", "EP2 TP2 SP PP2 distributed optimizer", 4, f"{EP2} {TP2} {SP} {ETP1} {PP2} {ZERO}"),
        ("deepseek mla", "TP2 SP CP2, grouped", 4, f"{TP2} {SP} {CP2} {GROUPED}"),
        ("deepseek mla", "recompute full, uniform", 1, f"{FULL} uniform"),
        ("deepseek bf16", "DP2 distributed optimizer", 2, ZERO),
        ("dropout", "recompute full, uniform", 1, f"{FULL} uniform"),
        ("dropout", "recompute selective", 1, SELECTIVE),
        ("llama bf16", "TP2 SP", 2, f"{TP2} {SP}"),
        ("llama bf16", "PP2", 2, PP2),
        ("llama bf16", "CP2 ring", 2, CP2),
        ("llama bf16", "CP2 a2a", 2, f"{CP2} {A2A}"),
        ("llama bf16", "DP2 distributed optimizer", 2, ZERO),
    )
)


def table(layouts: Sequence[Layout], differences: Mapping[str, Difference]) -> str:
    """Return the Markdown table of the differences."""
    lines = [
        "| model | layout | ranks | max loss difference | max relative grad norm difference | equal |",
        "|---|---|---|---|---|---|",
    ]
    for layout in layouts:
        found = differences[layout.name]
        model, name = layout.name.split(": ", 1)
        equal = "yes" if found.is_small(layout.model) else "**no**"
        lines.append(
            f"| {model} | {name} | {layout.ranks} | {found.loss:.1e} | {found.grad_norm:.1e} | {equal} |"
        )
    return "\n".join(lines)


def write(document: Path, text: str, begin: str, end: str) -> None:
    """Replace the text between the two marks of the document."""
    before, _, rest = document.read_text().partition(begin)
    document.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}")


def measure(chosen: Sequence[Layout], names: Sequence[str], document: Path, begin: str, end: str) -> int:
    """Run the named layouts, or all and update the document; return 1 if one differs from one process."""
    if unknown := {*names} - {layout.name for layout in chosen}:
        raise SystemExit(
            "\n".join(["no such layout:", *sorted(unknown), "known:", *(one.name for one in chosen)])
        )
    layouts = [layout for layout in chosen if not names or layout.name in names]
    with tempfile.TemporaryDirectory() as folder:
        differences = compare(layouts, Path(folder))
    text = table(layouts, differences)
    print(text)
    wrong = [layout for layout in layouts if not differences[layout.name].is_small(layout.model)]
    for layout in wrong:
        print(f"\n{layout.name}:\n{differences[layout.name].error}")
    if not names:
        write(document, text, begin, end)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(measure(LAYOUTS, sys.argv[1:], DOCUMENT, BEGIN, END))
