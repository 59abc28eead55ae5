"""Each rank's initial weights are its part of the same whole weights in every layout."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron.flagscale.initialization import draw

NORMAL = functools.partial(torch.nn.init.normal_, std=0.5)


def part(
    rows: int, columns: int, rank: int = 0, size: int = 1, dim: int = 0, stride: int = 1, **settings: Any
) -> torch.Tensor:
    """Return a rank's part of a whole weight of `rows x columns` that `size` ranks share."""
    shape = [rows, columns]
    shape[dim] //= size
    parameter = torch.nn.Parameter(torch.zeros(shape, dtype=settings.pop("dtype", torch.float32)))
    vars(parameter).update(tensor_model_parallel=True, partition_dim=dim, partition_stride=stride)
    group = SimpleNamespace(size=lambda: size, rank=lambda: rank)
    draw(
        parameter, settings.pop("rule", NORMAL), settings.pop("key", "1/w"), group, settings.pop("real", None)
    )
    return parameter.detach()


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_parts_of_all_ranks_form_the_whole_weight(dim: int, size: int) -> None:
    whole = part(16, 12)
    assert torch.equal(torch.cat([part(16, 12, rank, size, dim) for rank in range(size)], dim), whole)


def test_gate_and_up_projections_are_split_separately() -> None:
    gate, up = part(16, 12).chunk(2)
    second = part(16, 12, rank=1, size=2, stride=2)
    assert torch.equal(second, torch.cat((gate.chunk(2)[1], up.chunk(2)[1])))


def test_padding_changes_no_real_row() -> None:
    few, many = part(24, 7, real=21), part(64, 7, real=21)
    assert torch.equal(few[:21], many[:21])
    assert many.std() == pytest.approx(0.5, rel=0.2)


def test_precision_changes_no_weight() -> None:
    assert torch.equal(part(16, 12, dtype=torch.bfloat16), part(16, 12).bfloat16())


def test_weights_depend_on_name_seed_and_rule_and_leave_the_generator_unchanged() -> None:
    before = torch.get_rng_state()
    assert not torch.equal(part(16, 12), part(16, 12, key="1/v"))
    assert not torch.equal(part(16, 12), part(16, 12, key="2/w"))
    assert part(64, 64, rule=functools.partial(torch.nn.init.normal_, std=0.1)).std() == pytest.approx(
        0.1, rel=0.1
    )
    assert torch.equal(torch.get_rng_state(), before)
