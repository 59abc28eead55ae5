"""The whole chain without a GPU: measure this machine, estimate a job on it, train the job, compare.

The figures of the comparison depend on how busy the machine is: docs/planner.md. Here an estimate has to
be of the right order.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import gpu_mfu, predicted, unequal_plan
from flagscale.planner.chips import chip_of

PARTS = ("gemm/bfloat16", "attention/bfloat16", "collectives", "hbm_gb_s", "launch_s")


@pytest.mark.slow
def test_a_job_is_estimated_with_what_was_measured_here(
    tool: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chips, rows = tmp_path / "chips.json", tmp_path / "rows.jsonl"
    only = [f"--only={part}" for part in PARTS]
    done = tool("profile_chip.py", chips, "--platform=cpu", "--quick", *only)
    assert done.returncode == 0, done.stderr
    monkeypatch.setattr(gpu_mfu, "VARIATIONS", predicted.VARIATIONS[:1])
    words = ["--size=small", "--ranks=2", "--iterations=8", "--chip=cpu"]
    assert gpu_mfu.main([*words, f"--estimate={rows}", f"--chips={chips}"]) == 0
    assert "| small, as it is |" in capsys.readouterr().out
    (row,) = (json.loads(line) for line in rows.read_text().splitlines())
    ratio = row["predictions"]["flagscale profiled"]["iteration_s"] / row["measured"]["iteration_s"]
    assert 1 / 5 < ratio < 5


def test_a_row_holds_what_the_error_table_needs() -> None:
    job = gpu_mfu.varied(gpu_mfu.SIZES["1.3b"], predicted.VARIATIONS[4], ranks=8, iterations=10)
    row = predicted.row("1.3b", job, ("H200", "NVIDIA H200"), {"flagscale": {"iteration_s": 1.1}})
    assert row["hardware"] == {
        "gpu": "H200",
        "device": "NVIDIA H200",
        "count": 8,
        "nodes": 1,
        "gpus_per_node": 8,
    }
    assert (row["model"]["kv_heads"], row["model"]["gated"], row["model"]["vocab"]) == (4, True, 50304)
    assert row["flags"]["megatron_args"]["normalization"] == "RMSNorm"
    assert "measured" not in row
    row["measured"] = {"iteration_s": 1.0, "peak_alloc_gib": 8.0}
    row["predictions"]["flagscale"]["peak_alloc_gib"] = 7.0
    assert predicted.table([row]).splitlines()[-1] == "| 1.3b | 1.000 | 8.0 | +10.0% | -12.5% |"


def test_the_five_configurations_differ() -> None:
    jobs = [
        json.dumps(gpu_mfu.varied(gpu_mfu.SIZES["1.3b"], variation, 1, 10)["train"])
        for variation in predicted.VARIATIONS
    ]
    assert len({*jobs}) == 5


def test_a_plan_for_a_whole_and_a_half_core_uses_both() -> None:
    links = {"intra_node": {"world": 2, "gb_s": 4}, "inter_node": {"gbit_s_per_card": 16}, "memory_gb": 8}
    chips = {
        name: chip_of(name, {**links, "bf16_tflops_dense": share * 0.1, "hbm_gb_s": share * 10})
        for name, share in ((unequal_plan.WHOLE, 1.0), (unequal_plan.HALF, 0.5))
    }
    given = unequal_plan.model(12, 512, 16)
    plan, _ = unequal_plan.planned(given, chips)
    assert {chip.core for chip in plan.job.chips} == {0, 1}
    layers = {chip.core: sum(sum(of) for of in chip.mesh.layers) for chip in plan.job.chips}
    assert layers[0] > layers[1]
    assert sum(layers.values()) == 12
    names = [*unequal_plan.CORES, *unequal_plan.HOMOGENEOUS]
    others = {one.job.name: one for one in unequal_plan.alternatives(given, chips, names)}
    assert len(others) == len(names)
    assert all(plan.estimated_s < one.estimated_s for one in others.values())


def test_an_interval_holds_the_ratio_and_narrows_with_more_steps() -> None:
    few, many = ([1.0, 1.2, 0.9, 1.1] * times for times in (1, 25))
    for steps in (few, many):
        ratio, low, high = unequal_plan.interval([2 * one for one in steps], steps)
        assert ratio == pytest.approx(2.0)
        assert low < 2.0 < high
    widths = [high - low for _, low, high in (unequal_plan.interval(one, one) for one in (few, many))]
    assert widths[1] < widths[0] / 3


def test_an_estimate_needs_the_name_of_a_chip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu_mfu.main([f"--estimate={tmp_path / 'rows.jsonl'}"])
    assert "--estimate needs --chip NAME" in capsys.readouterr().err
