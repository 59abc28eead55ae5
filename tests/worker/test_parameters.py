"""The planner's weights of any rank against the engine's own model on meta tensors, for random jobs."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest

from flagscale.checks.hetero.layout import HeteroLayout, Mesh
from flagscale.checks.norms import POSITIONS
from flagscale.frozen import replace
from flagscale.planner.chips import chip_table, find_chip
from flagscale.planner.model_shape import ModelShape
from flagscale.planner.parameters import stage_parameters
from flagscale.planner.training import Block, Training
from flagscale_testing.meta_model import Found, engine_weights

CHIP = find_chip(next(iter(chip_table())))


def planned(training: Training, stage: int) -> Found:
    found: Found = Counter()
    for weight in stage_parameters(training, training.layout.stages[stage]).weights:
        found[weight.module, weight.shape, weight.is_expert] += weight.count
    return found


@pytest.mark.parametrize("seed", range(60))
def test_a_random_job_has_the_weights_of_the_engines_model(seed: int) -> None:
    draw = random.Random(seed)
    training = random_training(draw)
    for stage in training.layout.stages:
        rank = draw.choice(stage.ranks)
        assert planned(training, stage.index) == engine_weights(training, stage, rank), training


def random_training(draw: random.Random) -> Training:
    """Return a job of one mesh that the engine accepts."""
    tp, cp = draw.choice((1, 2, 4)), draw.choice((1, 2))
    pp = draw.choice((1, 2, 3, 4))
    chunks = draw.choice((1, 2, 3)) if pp > 1 else 1
    layers = tuple(tuple(draw.randint(0, 2) for _ in range(chunks)) for _ in range(pp))
    layers = ((layers[0][0] + 1, *layers[0][1:]), *layers[1:])
    model = random_model(draw, tp, sum(map(sum, layers)))
    etp = draw.choice([size for size in (1, 2, 4) if size <= tp]) if model.experts else tp
    ep = draw.choice([size for size in (1, 1, 2, 4) if model.experts % size == 0]) if model.experts else 1
    dp = draw.choice((1, 2)) * ep * etp
    mesh = Mesh(tp=tp, cp=cp, ep=ep, dp=dp, pp=pp, layers=layers)
    in_sequence = tp > 1 and (bool(model.experts) or draw.random() < 0.5)
    # The engine's own layers have neither sequence nor context parallelism, nor latent attention here.
    is_plain = cp == 1 and not in_sequence and model.attention != "mla"
    implementation = draw.choice(("torch", "local")) if is_plain else "torch"
    if implementation == "torch" and model.attention != "mla":
        model = with_own_norms(draw, model, tp)
    return Training(
        model=model,
        layout=HeteroLayout((mesh,)),
        blocks=(Block(CHIP, 1, expert_tp=etp, sequence_parallel=in_sequence),),
        sequence=64,
        batch=dp,
        padded_vocabulary=128 * tp,
        implementation=implementation,
        prediction_chunk=prediction_chunk(draw, layers, model),
    )


def with_own_norms(draw: random.Random, model: ModelShape, tp: int) -> ModelShape:
    """Return a model with norms that only `torch` layers have."""
    has_other = model.qk_norm or model.norm_bias or model.output_gate
    return replace(
        model,
        norm_position=draw.choice(POSITIONS),
        qk_norm_across_heads=not has_other and model.groups >= tp,
    )


def prediction_chunk(draw: random.Random, layers: Sequence[tuple[int, ...]], model: ModelShape) -> int | None:
    """Return a chunk behind the model's last layer for the heads; None: the last one."""
    by_chunk = [stage[chunk] for chunk in range(len(layers[0])) for stage in layers]
    last_with_layers = max(number for number, count in enumerate(by_chunk) if count)
    possible = range(max(last_with_layers, len(by_chunk) - len(layers)), len(by_chunk))
    return draw.choice((None, *possible)) if model.prediction_heads else None


def random_model(draw: random.Random, tp: int, layers: int) -> ModelShape:
    attention = draw.choice(("mha", "gqa", "mla", "mla"))
    groups = draw.choice((1, 2, 4))
    heads = 4 * groups * draw.randint(1, 2)
    is_moe = draw.random() < 0.6
    has_bias = draw.random() < 0.5 and not is_moe
    has_table = attention != "mla" and draw.random() < 0.3
    latent = (
        {
            "q_lora": draw.choice((0, 16)),
            "kv_lora": 24,
            "qk_nope_dim": 8,
            "rope_dim": 8,
            "v_dim": draw.choice((8, 16)),
        }
        if attention == "mla"
        else {}
    )
    mixture = (
        {
            "experts": draw.choice((4, 8)),
            "topk": 2,
            "expert_ffn": draw.choice((16, 32)),
            "shared_ffn": draw.choice((0, 48)),
        }
        if is_moe
        else {}
    )
    return ModelShape(
        hidden=64,
        heads=heads,
        groups=groups if attention == "gqa" else heads,
        head_dim=draw.choice((8, 16)),
        ffn=draw.choice((96, 160)),
        vocabulary=128,
        experts_in=tuple(is_moe and draw.random() < 0.7 for _ in range(layers)),
        attention=attention,
        prediction_heads=0 if has_table else draw.choice((0, 0, 1, 2)),
        gated=draw.random() < 0.5,
        norm_bias=draw.random() < 0.5,
        linear_bias=has_bias,
        qkv_bias=attention != "mla" and draw.random() < 0.3,
        qk_norm=draw.random() < 0.5,
        tied=draw.random() < 0.5,
        learned_positions=64 if has_table else 0,
        output_gate=attention != "mla" and draw.random() < 0.2,
        shared_gate=is_moe and draw.random() < 0.5,
        repeated_head=draw.random() < 0.3,
        **latent,
        **mixture,
    )
