"""On a CPU, dropout draws from the default generator, which must be the same on ranks with equal inputs."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch

from flagscale_testing.ranks.forked import Run, run_all
from flagscale_testing.ranks.layouts import COMMON, LLAMA, TP2
from megatron.flagscale.chips.cpu_patches import PATCHES

LOADER = "torch:utils.data.DataLoader.__init__"


def test_a_data_loader_does_not_draw_from_the_default_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    (patch,) = (one for one in PATCHES if one.target == LOADER)
    loader = torch.utils.data.DataLoader
    monkeypatch.setattr(loader, "__init__", patch.make(loader.__init__))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    made = loader([1, 2, 3], batch_size=1, shuffle=True)
    first = [int(one) for one in made]
    assert sorted(first) == [1, 2, 3]
    assert torch.equal(torch.get_rng_state(), before)
    # Later passes draw other numbers, and the seed decides all of them.
    rest = [[int(one) for one in made] for _ in range(5)]
    assert any(one != first for one in rest)
    again = loader([1, 2, 3], batch_size=1, shuffle=True)
    assert [[int(one) for one in again] for _ in range(6)] == [first, *rest]


@pytest.mark.slow
def test_hidden_dropout_is_the_same_on_the_ranks_of_a_layer(tmp_path: Path) -> None:
    """Without sequence parallelism, each of them holds all activations between two layers."""
    options = f"{COMMON} {LLAMA} --mock-data --hidden-dropout 0.3 --train-iters 3 --num-layers 2"
    runs = [
        Run(name, ranks, tuple(shlex.split(f"{options} {layout}")))
        for name, ranks, layout in (("one process", 1, ""), ("TP2", 2, TP2))
    ]
    one, two = run_all(runs, tmp_path).values()
    assert not one.error
    assert not two.error
    assert two.losses == pytest.approx(one.losses, abs=1e-5)
    assert two.grad_norms == pytest.approx(one.grad_norms, rel=1e-4)
