"""Cross entropy compared with plain float64 arithmetic: eager, compiled, and over a split vocabulary.

Run as a module, this file is the job of two ranks under test: each writes the errors it found.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from flagscale_testing.ranks.functions import on_ranks
from flagscale_testing.ranks.training import PATIENCE, ROOT, environment
from megatron.flagscale.layers.loss import cross_entropy, use_our_loss
from tests.worker.test_layers import DEVICES, LIMITS, as_leaves, error, inputs

ALONE = SimpleNamespace(size=lambda: 1, rank=lambda: 0)
SHAPE = (7, 3, 50)


@pytest.fixture
def as_it_stands() -> Iterator[None]:
    """Compile nothing."""
    with torch.compiler.set_stance("force_eager"):
        yield


def errors(dtype: torch.dtype, group: Any, device: str = "cpu") -> list[float]:
    """Return the relative errors of loss and gradient for this rank's part of the vocabulary."""
    logits, grad = (tensor.to(dtype).double() for tensor in inputs(SHAPE, SHAPE[:2]))
    logits = logits * 20  # large enough that a sum of exponentials would overflow
    labels = torch.arange(21).view(SHAPE[:2]) * 5 % SHAPE[2]
    own = slice(group.rank() * SHAPE[2] // group.size(), (group.rank() + 1) * SHAPE[2] // group.size())
    (found,) = as_leaves([logits.to(dtype)[..., own].double()], dtype, device)
    loss = cross_entropy(found, labels.to(device), group)
    assert loss.dtype == torch.float32
    loss.backward(grad.to(device, torch.float32))
    (exact,) = as_leaves([logits.to(dtype).double()], torch.float64)
    expected = F.cross_entropy(exact.flatten(0, 1), labels.flatten(), reduction="none").view(SHAPE[:2])
    expected.backward(grad)
    assert found.grad is not None
    assert exact.grad is not None
    assert found.grad.dtype == dtype
    return [error(loss, expected.detach()), error(found.grad, exact.grad[..., own])]


@pytest.mark.usefixtures("as_it_stands")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
def test_the_loss_is_exact(device: str, dtype: torch.dtype) -> None:
    of_loss, of_grad = errors(dtype, ALONE, device)
    assert of_loss <= 1e-6  # computed in float, whatever the precision of the logits
    assert of_grad <= LIMITS[dtype]


@pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed, which torch.compile needs")
@pytest.mark.parametrize(
    "device", [pytest.param(one, marks=pytest.mark.slow if one == "cpu" else ()) for one in DEVICES]
)
def test_the_compiled_loss_is_exact(device: str) -> None:
    of_loss, of_grad = errors(torch.bfloat16, ALONE, device)
    assert of_loss <= 1e-6
    assert of_grad <= LIMITS[torch.bfloat16]


def test_two_ranks_share_the_vocabulary(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.worker.test_layers_loss", str(tmp_path)]
    subprocess.run(command, env=environment(), cwd=ROOT, check=True, timeout=PATIENCE)
    for rank in range(2):
        of_loss, of_grad = json.loads((tmp_path / f"{rank}.json").read_text())
        assert of_loss <= 1e-6
        assert of_grad <= LIMITS[torch.float32]


@pytest.mark.usefixtures("as_it_stands")
def test_a_language_model_returns_losses_batch_first() -> None:
    model: Any = torch.nn.Module()
    model.pg_collection = SimpleNamespace(tp=ALONE)
    assert use_our_loss([model]) == [model]
    (logits,) = inputs((5, 2, 8))
    labels = torch.arange(10).view(2, 5) % 8
    losses = model.compute_language_model_loss(labels, logits.float())
    expected = F.cross_entropy(logits.permute(1, 2, 0), labels, reduction="none")
    assert torch.allclose(losses.double(), expected, rtol=1e-5)


def main(folder: Path) -> int:
    def measure(rank: int) -> None:
        (folder / f"{rank}.json").write_text(json.dumps(errors(torch.float32, dist.group.WORLD)))

    with torch.compiler.set_stance("force_eager"):
        return on_ranks(2, folder, measure)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
