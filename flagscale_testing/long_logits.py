"""The logits of Megatron's model and of transformers at hundreds of tokens, on models of odd shapes.

Used by the tests and, for the table in docs/conversion.md, by `benchmarks/conversion_table.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from flagscale_testing.conversion import CASES, logits_run, make_model
from flagscale_testing.ranks.forked import run_all
from flagscale_testing.shapes import odd
from megatron.flagscale.convert.convert import convert

TOKENS = 700
POSITIONS = 720
"""More than the original positions of every scaled model and than every window."""


def differences(names: Iterable[str], folder: Path) -> dict[str, float]:
    """Return the largest difference between logits for each named case, relative to the largest logit.

    Raises:
        RuntimeError: Megatron's model did not run; holds its output.
    """
    tokens = torch.randint(3, 250, (1, TOKENS), generator=torch.Generator().manual_seed(2))
    torch.save({"tokens": tokens, "pictures": None}, folder / "tokens.pt")
    runs, expected = {}, {}
    for name in names:
        case, where = odd(CASES[name], POSITIONS), folder / name
        model = make_model(case, where / "hf", seed=3)
        with torch.no_grad():
            expected[name] = model(tokens).logits.float()
        convert(where / "hf", where / "megatron")
        runs[name] = logits_run(name, case, where, TOKENS)
    curves = run_all(runs.values(), folder / "runs")
    if errors := [f"{name}: {curve.error}" for name, curve in curves.items() if curve.error]:
        raise RuntimeError("\n".join(errors))
    return {name: _difference(folder / name / "logits.pt", logits) for name, logits in expected.items()}


def _difference(found: Path, expected: torch.Tensor) -> float:
    logits = torch.load(found, weights_only=True)[..., : expected.shape[-1]]
    return float((logits - expected).abs().max() / expected.abs().max())
