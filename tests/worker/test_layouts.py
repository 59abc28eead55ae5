"""Some parallel layouts that together use every kind of parallelism compute the same training as one process.

`python -m benchmarks.layouts` compares all others.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.layouts import CUT, EP2, ETP1, LAYOUTS, OVERLAP, PP4, SP, UP, VPP2, ZERO
from flagscale_testing.ranks.forked import Curve, Run, run_all
from flagscale_testing.ranks.layouts import CP2, PP2, TP2, Difference, Layout, compare
from flagscale_testing.ranks.training import read_metrics

pytestmark = pytest.mark.timeout(900)  # the first test of each fixture waits for all its trainings
STEPS = 6
SAVED_AT = 3
FAST = (
    "llama: TP2 SP CP2",
    "gpt: TP2 SP PP2 distributed optimizer",
    "moe: EP2 TP2 SP, ETP1",
    "packed: CP2",
    "deepseek: EP2 PP2 interleaved",
)
NAMES = (
    *FAST,
    "llama: CP2, another type in each layer",
    "llama: PP2 interleaved",
    "llama, 8 layers: PP4 interleaved, sends not overlapped",
    "moe: EP2 TP2 SP, ETP2, alltoall dispatch, grouped",
    "sinks: EP2 TP2 SP, ETP1",
    "packed: Megatron's local layers, masks in memory",
    "packed: PP4, documents masked on middle stages",
    "olmo: TP2 SP PP2 distributed optimizer",
    "gemma: TP2 SP CP2",
    "mtp, per token: CP2",
)
CHOSEN = {layout.name: layout for layout in LAYOUTS if layout.name in NAMES}
APART = Layout("deepseek: loss apart", "deepseek", 2, f"{PP2} {CUT} Ettttm|L")
BY_RANK = replace(CHOSEN["llama: TP2 SP CP2"], name="llama: by rank", ranks=2, options="--init-by-rank")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("layouts")
    return made


@pytest.fixture(scope="module")
def differences(folder: Path, request: pytest.FixtureRequest) -> dict[str, Difference]:
    names = NAMES if request.config.getoption("--slow") else FAST
    return compare([*(CHOSEN[name] for name in names), APART, BY_RANK], folder, STEPS)


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_a_layout_computes_the_same_as_one_process(name: str, differences: dict[str, Difference]) -> None:
    found = differences[name]
    assert found.is_small(CHOSEN[name].model), found


def test_metrics_have_the_losses_of_routers_and_heads(
    folder: Path, differences: dict[str, Difference]
) -> None:
    *_, last = read_metrics(folder / "deepseek: EP2 PP2 interleaved" / "metrics.jsonl")
    losses = {name for name in last if name.endswith("loss")}
    assert losses == {"lm_loss", "seq_load_balancing_loss", "mtp_1_loss"}
    assert last["mtp_1_loss"] == pytest.approx(last["lm_loss"], rel=0.2)
    assert last["seq_load_balancing_loss"] == pytest.approx(1, rel=0.1)
    *_, of_loss_stage = read_metrics(folder / APART.name / "metrics.jsonl")
    assert {name: of_loss_stage[name] for name in losses} == pytest.approx(
        {name: last[name] for name in losses}
    )


def test_weights_drawn_by_rank_differ(differences: dict[str, Difference]) -> None:
    found = differences[BY_RANK.name]
    assert not found.error
    assert found.loss > 1e-3


EVALUATED = "--eval-iters 1 --eval-interval 1"

# A checkpoint is saved under each of these layouts and continued under those of `CONTINUED`.
SAVED = {
    "llama": Layout("llama saved as TP2 PP2 SP", "llama", 4, f"{TP2} {PP2} {SP}"),
    "experts": Layout("moe saved as TP2 SP EP2", "moe", 2, f"{EP2} {TP2} {SP} {ETP1}"),
    "one": Layout("moe saved as one", "moe", 1, ""),
    # It also recomputes: the projections of latent attention, and norms.
    "latent": Layout(
        "mla experts saved as TP2 SP EP2", "mla experts", 2, f"{EP2} {TP2} {SP} {ETP1} {UP} layernorm"
    ),
    "buckets": Layout("gpt saved in padded buckets", "gpt", 2, f"{OVERLAP} --ddp-bucket-size 20000"),
    "deepseek": Layout("deepseek saved as EP2", "deepseek", 2, EP2),
    "deepseek parts": Layout("deepseek saved as TP2 SP EP2", "deepseek", 2, f"{EP2} {TP2} {SP} {ETP1}"),
    "norms": Layout("olmo saved as TP2 SP PP2", "olmo", 4, f"{TP2} {SP} {PP2}"),
    "tied": Layout("mtp, tied saved as PP2", "mtp, tied", 2, PP2),
    "tied apart": Layout("mtp, tied saved as PP4", "mtp, tied", 4, f"{PP4} {CUT} Et|tt|tmm|L"),
    "deepseek stages": Layout("deepseek saved as EP2 PP2", "deepseek", 4, f"{EP2} {PP2}"),
}
CONTINUED = (
    ("llama", Layout("llama as DP2", "llama", 2, "")),
    ("llama", Layout("llama as CP2", "llama", 2, CP2)),
    ("experts", Layout("moe as one", "moe", 1, "")),
    ("experts", Layout("moe as EP2 PP2", "moe", 4, f"{EP2} {PP2}")),
    ("one", Layout("moe as EP2", "moe", 2, EP2)),
    ("latent", Layout("mla experts as one", "mla experts", 1, "")),
    ("latent", Layout("mla experts as EP2 CP2", "mla experts", 2, f"{EP2} {CP2}")),
    ("latent", Layout("mla experts as TP2 SP PP2", "mla experts", 4, f"{TP2} {SP} {PP2}")),
    ("buckets", Layout("gpt as one", "gpt", 1, "")),
    ("deepseek", Layout("deepseek as one", "deepseek", 1, "")),
    ("deepseek parts", Layout("deepseek as PP2 interleaved", "deepseek", 2, f"{PP2} {VPP2}")),
    ("norms", Layout("olmo as one", "olmo", 1, "")),
    ("tied", Layout("mtp, tied as one", "mtp, tied", 1, "")),
    ("tied apart", Layout("mtp, tied as PP2 TP2 SP", "mtp, tied", 4, f"{PP2} {TP2} {SP}")),
    ("deepseek stages", Layout("deepseek as EP2 CP2", "deepseek", 2, f"{EP2} {CP2}")),
    (
        "deepseek stages",
        Layout("deepseek as one, evaluated", "deepseek", 1, EVALUATED),
    ),
)


QUICK = ("llama as DP2", "moe as EP2", "deepseek as one")


@pytest.fixture(scope="module")
def continued(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Curve]:
    folder: Path = tmp_path_factory.mktemp("checkpoints")
    runs: list[Run] = []
    is_slow = request.config.getoption("--slow")
    chosen = [(saved, layout) for saved, layout in CONTINUED if is_slow or layout.name in QUICK]
    for saved in dict.fromkeys(saved for saved, _ in chosen):
        runs.append(_run(SAVED[saved], "--save", f"{folder}/{saved}", "--save-interval", str(SAVED_AT)))
    for saved, layout in chosen:
        runs.append(_run(layout, "--load", f"{folder}/{saved}", "--ckpt-step", str(SAVED_AT)))
    return run_all(runs, folder / "runs")


def _run(layout: Layout, *more: str) -> Run:
    run = layout.run(STEPS)
    return replace(run, argv=(*run.argv, ZERO, *more))


@pytest.mark.parametrize(
    ("saved", "layout"),
    [pytest.param(*one, marks=() if one[1].name in QUICK else pytest.mark.slow) for one in CONTINUED],
    ids=lambda value: getattr(value, "name", ""),
)
def test_another_layout_continues_from_a_checkpoint(
    saved: str, layout: Layout, continued: dict[str, Curve]
) -> None:
    whole, rest = continued[SAVED[saved].name], continued[layout.name]
    assert not whole.error
    assert not rest.error
    assert rest.losses == pytest.approx(whole.losses[SAVED_AT:], abs=2e-5)
    assert rest.grad_norms == pytest.approx(whole.grad_norms[SAVED_AT:], rel=1e-4)
