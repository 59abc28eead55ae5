"""Adapters learn conversations as peft and transformers train them, from the same initial adapter."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from flagscale_testing.conversations import drawn
from flagscale_testing.ranks.conversations import (
    PROGRAM,
    figures_of,
    prepared,
    samples_of_all,
    with_transformers,
)
from flagscale_testing.ranks.forked import Run, run_all
from flagscale_testing.ranks.layouts import PP2, TP2
from megatron.flagscale.convert.adapter_conversion import export_adapter

pytestmark = pytest.mark.filterwarnings("ignore")  # the engine warns that TransformerEngine is missing
TRAIN, VALID = drawn(24), drawn(7, seed=2)
LAYOUTS = {
    "one process": (1, ""),
    "TP2 SP": (2, f"{TP2} --sequence-parallel"),
    "PP2 interleaved": (2, f"{PP2} --num-virtual-stages-per-pipeline-rank 2"),
    "TP2 PP2, not packed": (4, f"{TP2} {PP2} --no-packing"),
}
AS_DRAWN = "--train-iters 1 --lr 0 --save-interval 1"


@pytest.mark.slow
def test_adapters_learn_conversations_as_with_peft(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed (make test installs it)")
    model, common = prepared(tmp_path, TRAIN, VALID)
    adapters = (
        "--pretrained-checkpoint",
        str(tmp_path / "megatron"),
        *shlex.split("--lora-rank 4 --lora-alpha 8"),
    )
    saving = (*shlex.split(AS_DRAWN), "--save", str(tmp_path / "drawn"))
    batch = ("--global-batch-size", str(samples_of_all(TRAIN)))
    runs = [Run("drawn", 1, (*common, *adapters, *batch, *saving), PROGRAM)]
    for name, (ranks, options) in LAYOUTS.items():
        batch = ("--global-batch-size", str(samples_of_all(TRAIN, options)))
        runs.append(Run(name, ranks, (*common, *adapters, *batch, *shlex.split(options)), PROGRAM))
    curves = run_all(runs, tmp_path / "runs")
    assert not curves["drawn"].error

    export_adapter(tmp_path / "drawn", tmp_path / "peft", base=tmp_path / "hf")
    expected = with_transformers(
        peft.PeftModel.from_pretrained(model, tmp_path / "peft", is_trainable=True), TRAIN, VALID
    )
    assert expected.losses[-1] < expected.losses[0]
    for name in LAYOUTS:
        found = figures_of(curves[name], tmp_path / "runs" / name)
        assert found, curves[name].error
        losses, norms = found.difference(expected)
        assert losses < 1e-5
        assert norms < 1e-4
