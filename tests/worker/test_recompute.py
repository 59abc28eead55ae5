"""Recompute per stage and micro-batch: the same training, and exactly the activation memory requested.

A probe in every rank records, at each forward of a transformer block, the bytes that autograd keeps.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flagscale.checks.recompute import chunk_layers
from flagscale.errors import UserError
from flagscale_testing.ranks.forked import Run, read_curve, run_all
from flagscale_testing.ranks.layouts import PP2, Layout

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),  # the first test of a fixture waits for all its trainings
]
STEPS, MICRO_BATCHES = 2, 4
# Evaluate between the steps, with more micro-batches than a step has.
EVALUATED = "--eval-iters 1 --eval-interval 1 --eval-global-batch-size 12"
VPP2 = f"{PP2} --num-virtual-stages-per-pipeline-rank 2 --num-layers 8"
DEGREES = {"pp1": (1, ""), "pp2": (2, PP2), "vpp2": (2, VPP2)}


def full(method: str, num_layers: int) -> str:
    return f"--recompute-granularity full --recompute-method {method} --recompute-num-layers {num_layers}"


def lists(**rows: list[list[int]]) -> str:
    return " ".join(
        f"--recompute-{part.replace('_', '-')}-per-stage-micro-batch {json.dumps(json.dumps(value))}"
        for part, value in rows.items()
    )


# The engine's own recompute, the same in all stages and micro-batches, shows the cost of each kind.
KINDS = {
    "off": "",
    "uniform 1": full("uniform", 1),
    "uniform 2": full("uniform", 2),
    "block 1": full("block", 1),
}
# Per degree: the lists, and the kind that each stage (chunk) should use in each of a step's micro-batches.
REFINED: dict[str, tuple[str, list[list[str]]]] = {
    "pp1": (
        lists(
            granularity=[[1, 1, 1, 1, 0, 2, 1]],
            method=[[1, 2, 0, 2, 1]],
            num_layers=[[1, 2, 2, 2, 1]],
        ),
        [["uniform 2", "off", "block 1", "block 1"]],
    ),
    "pp2": (
        lists(
            granularity=[[1, 3, 0, 1, 1], [1, 1, 1, 2, 0, 1, 1]],
            method=[[1, 4, 1], [1, 3, 1, 1, 0]],
        ),
        [["off", "off", "off", "block 1"], ["block 1", "off", "off", "uniform 1"]],
    ),
    "vpp2": (
        lists(
            granularity=[[1, 4, 1], [1, 2, 0, 2, 1], [1, 1, 1, 3, 0], [1, 4, 0]],
            num_layers=[[1, 2, 1, 2, 2], [3, 4, 2]],
        ),
        [
            ["uniform 1", "uniform 1", "uniform 2", "uniform 2"],
            ["off", "off", "uniform 2", "uniform 2"],
            ["uniform 2", "off", "off", "off"],
            ["off"] * 4,
        ],
    ),
}
NEEDED = {degree: {"off", *(kind for row in asked for kind in row)} for degree, (_, asked) in REFINED.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train every degree with each kind of recompute everywhere, and with the lists."""
    runs = [run(degree, kind, KINDS[kind]) for degree in REFINED for kind in sorted(NEEDED[degree])] + [
        run(degree, "lists", f"{full('uniform', 1)} {REFINED[degree][0]}") for degree in REFINED
    ]
    where: Path = tmp_path_factory.mktemp("recompute")
    curves = run_all(runs, where)
    assert not [curve.error for curve in curves.values() if curve.error]
    return where


def run(degree: str, kind: str, options: str) -> Run:
    ranks, how = DEGREES[degree]
    layout = Layout(f"{degree} {kind}", "llama", ranks, f"{EVALUATED} {how} {options}")
    return replace(layout.run(STEPS), mutation=f"{__name__}:probe")


def forwards(where: Path) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """Return the probe's records of training, in order, by (stage or chunk, micro-batch)."""
    found: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for path in where.glob("forwards.*"):
        counts: Counter[int] = Counter()
        for line in map(json.loads, path.read_text().splitlines()):
            if line["training"]:
                # Counted here instead of by the engine: the forwards of a chunk run in this order.
                micro_batch = counts[line["stage"]] % MICRO_BATCHES
                counts[line["stage"]] += 1
                found.setdefault((line["stage"], micro_batch), []).append(line)
    return found


@pytest.mark.parametrize("degree", REFINED)
def test_every_micro_batch_keeps_the_bytes_of_its_recompute_setting(degree: str, folder: Path) -> None:
    asked = REFINED[degree][1]
    costs = {kind: forwards(folder / f"{degree} {kind}") for kind in NEEDED[degree]}
    found = forwards(folder / f"{degree} lists")
    assert found.keys() == {(stage, i) for stage, kinds in enumerate(asked) for i in range(len(kinds))}
    for (stage, micro_batch), seen in found.items():
        at = (stage, micro_batch)
        # One forward per step: recomputation in the backward pass is not a forward of the block.
        expected = [line["bytes"] for line in costs[asked[stage][micro_batch]][at]]
        assert [line["bytes"] for line in seen] == expected, at
        assert len(seen) == STEPS
        assert len({one[at][0]["bytes"] for one in costs.values()}) == len(costs), "the kinds differ"


@pytest.mark.parametrize("degree", REFINED)
def test_recompute_does_not_change_the_loss(degree: str, folder: Path) -> None:
    plain, refined = read_curve(folder / f"{degree} off"), read_curve(folder / f"{degree} lists")
    assert len(plain.losses) == STEPS
    assert refined == plain


@pytest.mark.parametrize("degree", REFINED)
def test_other_modules_do_not_see_the_settings_of_a_block(degree: str, folder: Path) -> None:
    seen = [line for lines in forwards(folder / f"{degree} lists").values() for line in lines]
    assert {tuple(line["shared"]) for line in seen} == {("full", "uniform", 1)}


def arguments(**changes: Any) -> argparse.Namespace:
    return argparse.Namespace(
        **{
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
            "pipeline_model_parallel_size": 2,
            "virtual_pipeline_model_parallel_size": None,
            "global_batch_size": 16,
            "micro_batch_size": 2,
            "data_parallel_size": 2,
            "num_layers": 4,
        }
        | changes
    )


def test_a_worker_reports_all_mistakes_in_the_lists() -> None:
    from megatron.flagscale.recompute import schedule_recompute

    model = SimpleNamespace(pre_wrap_hooks=[])
    wrong = arguments(
        recompute_granularity_per_stage_micro_batch="[[2, 3, 0]]",
        recompute_method_per_stage_micro_batch="[[3, 4, 2]]",
        recompute_num_layers_per_stage_micro_batch="[[2, 4, 5]]",
    )
    with pytest.raises(UserError) as refused:
        schedule_recompute(model, wrong)
    assert len(refused.value.problems) == 3
    assert not model.pre_wrap_hooks
    schedule_recompute(model, arguments())
    assert not model.pre_wrap_hooks
    schedule_recompute(model, arguments(recompute_granularity_per_stage_micro_batch="[[2, 4, 0]]"))
    assert len(model.pre_wrap_hooks) == 1


@pytest.mark.parametrize(
    ("pp", "vpp", "layers", "first", "last", "embedding", "loss"),
    [
        (1, 1, 3, None, None, False, False),
        (2, 1, 6, None, None, False, False),
        (2, 2, 8, None, None, False, False),
        (4, 2, 16, None, None, False, False),
        (3, 1, 7, 1, None, False, False),
        (3, 2, 14, 2, 4, False, False),
        (2, 1, 5, 3, 2, False, False),
        (2, 2, 7, None, None, True, False),
        (2, 1, 7, None, None, False, True),
        (2, 2, 6, None, None, True, True),
    ],
)
def test_chunk_layers_match_those_that_the_engine_builds(
    pp: int, vpp: int, layers: int, first: int | None, last: int | None, embedding: bool, loss: bool
) -> None:
    from megatron.core.transformer.transformer_block import get_num_layers_to_build

    values = {
        "num_layers": layers,
        "account_for_embedding_in_pipeline_split": embedding,
        "account_for_loss_in_pipeline_split": loss,
        "pipeline_model_parallel_layout": None,
    }
    engine = SimpleNamespace(
        **values,
        num_layers_in_first_pipeline_stage=first,
        num_layers_in_last_pipeline_stage=last,
        pipeline_model_parallel_size=pp,
        virtual_pipeline_model_parallel_size=vpp if vpp > 1 else None,
    )
    values |= {"decoder_first_pipeline_num_layers": first, "decoder_last_pipeline_num_layers": last}
    built = tuple(
        get_num_layers_to_build(engine, chunk if vpp > 1 else None, stage)
        for chunk in range(vpp)
        for stage in range(pp)
    )
    assert chunk_layers(values, pp, vpp) == built


def probe() -> None:
    """Make every forward of a transformer block record its settings and the bytes kept."""
    from megatron.core.transformer.transformer_block import TransformerBlock

    TransformerBlock.forward = _probed(TransformerBlock.forward)


def _probed(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a block's forward that records the bytes saved for its backward pass, without weights."""
    import torch
    from megatron.core import mpu
    from megatron.training import get_args

    def forward(block: Any, *positional: Any, **named: Any) -> Any:
        weights = {weight.untyped_storage().data_ptr() for weight in block.parameters()}
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = original(block, *positional, **named)
        args, shared = get_args(), block.layers[0].config
        rank = mpu.get_pipeline_model_parallel_rank()
        line = {
            "stage": (block.vp_stage or 0) * args.pipeline_model_parallel_size + rank,
            "training": block.training,
            "bytes": sum(kept.values()),
            "shared": [shared.recompute_granularity, shared.recompute_method, shared.recompute_num_layers],
        }
        with Path(args.metrics_file).with_name(f"forwards.{os.environ['RANK']}").open("a") as file:
            file.write(json.dumps(line) + "\n")
        return output

    return forward
