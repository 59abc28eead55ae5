"""On a CPU, dropout draws from the default generator, which must be the same on ranks with equal inputs."""

from __future__ import annotations

import os
import re
import shlex
import zlib
from pathlib import Path
from typing import Any

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


def note_the_masks() -> None:
    """Make each rank print which of its activations every dropout keeps."""
    original = torch.nn.functional.dropout

    def dropout(inputs: torch.Tensor, p: float = 0.5, *rest: Any, **options: Any) -> torch.Tensor:
        kept = original(inputs, p, *rest, **options)
        if p:
            mask = zlib.crc32((kept != 0).numpy().tobytes())
            print(f"rank {os.environ['RANK']} keeps {mask}", flush=True)
        return kept

    torch.nn.functional.dropout = dropout


@pytest.mark.slow
def test_the_ranks_of_a_layer_drop_the_same_activations(tmp_path: Path) -> None:
    """Without sequence parallelism, each of them holds all activations between two layers."""
    options = f"{COMMON} {LLAMA} {TP2} --mock-data --hidden-dropout 0.3 --train-iters 1 --num-layers 2"
    run = Run("TP2", 2, tuple(shlex.split(options)), mutation=f"{__name__}:note_the_masks")
    assert not run_all([run], tmp_path)["TP2"].error
    output = (tmp_path / "TP2/output").read_text()
    first, second = (re.findall(rf"rank {rank} keeps (\d+)", output) for rank in range(2))
    assert len({*first}) > 1
    assert first == second
