"""Jobs of training for the tests of the planner."""

from __future__ import annotations

from typing import Any

from flagscale.checks.hetero.layout import HeteroLayout, Mesh
from flagscale.frozen import replace
from flagscale.planner.chips import find_chip
from flagscale.planner.model_shape import ModelShape
from flagscale.planner.training import Block, Numerics, Training


def shape(layers: int = 32, experts: int = 0, **changes: Any) -> ModelShape:
    """Return a model of 7 B, dense unless it has `experts`."""
    of = ModelShape(
        hidden=4096,
        heads=32,
        groups=8,
        head_dim=128,
        ffn=14336,
        vocabulary=32000,
        experts_in=(bool(experts),) * layers,
        attention="gqa",
        gated=True,
    )
    if experts:
        of = replace(of, experts=experts, topk=2, expert_ffn=4096)
    return replace(of, **changes)


def training(
    *,
    chip: str = "H100",
    model: ModelShape | None = None,
    layers: int = 32,
    tp: int = 1,
    cp: int = 1,
    ep: int = 1,
    dp: int = 1,
    pp: int = 1,
    chunks: int = 1,
    micro_batch: int = 1,
    micro_batches: int = 8,
    sequence: int = 4096,
    sequence_parallel: bool = True,
    **changes: Any,
) -> Training:
    """Return an ordinary job; `changes` are fields of `Training`."""
    model = model or shape(layers)
    stages = ((model.layers // (pp * chunks),) * chunks,) * pp
    block = Block(find_chip(chip), micro_batch, sequence_parallel=sequence_parallel and tp > 1)
    of = Training(
        model=model,
        layout=HeteroLayout((Mesh(tp, cp, ep, dp, pp, stages),)),
        blocks=(block,),
        sequence=sequence,
        batch=dp * micro_batch * micro_batches,
        padded_vocabulary=model.vocabulary,
        numerics=Numerics(distributed=True),
    )
    return replace(of, **changes)
