"""What the planner adds for norms that the engine does not have, against layers on meta tensors."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flagscale.checks.norms import ACROSS_HEADS, BOTH, POSITION, POST
from flagscale.planner.memory.own_norms import own_norm_parts
from flagscale_testing.layer_memory.cases import Case
from flagscale_testing.layer_memory.layer import measure
from flagscale_testing.layer_memory.te_case import planned
from tests.worker.test_layer_memory import BATCH, CP2, DENSE, EXPERTS, GROUPED, PLAIN, SHARED, TP2, total

CASES = (
    Case({**BATCH, **PLAIN, **DENSE}),
    Case({**BATCH, **GROUPED, **DENSE, **TP2}),
    Case({**BATCH, **GROUPED, **DENSE, **TP2}, sequence_parallel=True, recompute=("core_attn", "mlp")),
    Case({**BATCH, **GROUPED, **DENSE, **CP2}, dtype="float32", options=("a2a", "dropout")),
    Case({**BATCH, **GROUPED, **EXPERTS, **TP2}, sequence_parallel=True, options=("aux_loss",)),
    Case({**BATCH, **PLAIN, **SHARED}, recompute=("moe",), options=("grouped",)),
    Case({**BATCH, **PLAIN, **DENSE}, options=("layer_norm", "ungated", "unrotated")),
)
NORMS = ({POSITION: POST}, {POSITION: BOTH}, {ACROSS_HEADS: True}, {POSITION: POST, ACROSS_HEADS: True})

# Norms across heads are RMSNorms.
PAIRS = [
    (norms, case)
    for norms in NORMS
    for case in CASES
    if not {ACROSS_HEADS, "layer_norm"} <= {*norms, *case.options}
]


@pytest.mark.parametrize(("norms", "case"), PAIRS)
def test_norms_keep_what_the_planner_adds(norms: dict[str, object], case: Case) -> None:
    model, sharding = planned(case)
    model = replace(
        model,
        norm_bias="layer_norm" in case.options,
        norm_position=norms.get(POSITION, "pre"),
        qk_norm_across_heads=ACROSS_HEADS in norms,
    )
    with_norms = measure(replace(case, norms=tuple(norms.items())))
    assert total(with_norms) - total(measure(case)) == sum(dict(own_norm_parts(model, sharding)).values())
