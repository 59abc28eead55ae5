"""A checkpoint saved under one parallel layout continues under another as if there had been no interruption.

`test_layouts.py` has more pairs, with other kinds of parallelism. The pairs here cover the distributed
optimizer on either side, asynchronous saves, and the padded vocabulary.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from flagscale_testing.ranks.forked import Curve, Run, run_all
from flagscale_testing.ranks.layouts import MODELS, PP2, TP2
from megatron.flagscale.checkpoint.optimizer_state import is_rounded, positions_without_padding

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),  # the first test of a fixture waits for all its trainings
]
STEPS = 4
SAVED_AT = 2
ZERO = "--use-distributed-optimizer"
EP2 = "--expert-model-parallel-size 2"
INTERLEAVED = f"{PP2} --num-virtual-stages-per-pipeline-rank 2"
OVERLAP = "--overlap-grad-reduce --overlap-param-gather"
# 256 tokens are padded to 300 in one process, and to 400 with two tensor parallel ranks.
PADDED = "--make-vocab-size-divisible-by 100"

# Name: model, ranks, options.
SAVED = {
    "TP2 PP2": ("llama", 4, f"{TP2} {PP2} {ZERO} --async-save"),
    "DP2": ("gpt", 2, f"{ZERO} {OVERLAP}"),
    "EP2": ("moe", 2, f"{EP2} {ZERO} --async-save"),
    "padded TP2": ("llama", 2, f"{TP2} {ZERO} {PADDED}"),
    "EP2, whole states": ("moe", 2, EP2),
    "experts of one process": ("moe", 1, ""),
    "EP2 bf16, whole states": ("moe", 2, f"{EP2} --bf16"),
    "experts of one process, bf16": ("moe", 1, "--bf16"),
}
CONTINUED = (
    ("TP2 PP2", 2, f"{INTERLEAVED} {ZERO}"),
    ("padded TP2", 1, f"{ZERO} --make-vocab-size-divisible-by 400"),
    ("TP2 PP2", 1, ZERO),
    ("TP2 PP2", 2, f"{ZERO} {OVERLAP}"),
    ("TP2 PP2", 2, f"{TP2} {ZERO}"),
    ("DP2", 4, f"{TP2} {PP2} {ZERO}"),
    ("EP2", 1, ZERO),
    ("EP2, whole states", 1, ""),
    ("experts of one process", 2, EP2),
    ("EP2 bf16, whole states", 1, "--bf16"),
    ("experts of one process, bf16", 2, f"{EP2} --bf16"),
)
OTHER_PADDING = "padded TP2 with other padding"
MIXED_UP, NO_STATE = "saved as an earlier version did", "continued without the optimizer's state"
BUCKETS = f"{ZERO} {OVERLAP} --ddp-bucket-size 20000"


def mix_up_states() -> None:
    """Save the states of the optimizer as the engine does."""
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

    patched = DistributedOptimizer.sharded_param_state_fully_reshardable
    DistributedOptimizer.sharded_param_state_fully_reshardable = patched.__wrapped__


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Curve]:
    """Run each saved layout to its end, then all runs that continue from its middle."""
    folder: Path = tmp_path_factory.mktemp("resharding")

    def run(name: str, model: str, ranks: int, *options: str) -> Run:
        argv = (*MODELS[model], "--train-iters", str(STEPS), *shlex.split(" ".join(options)))
        return Run(name, ranks, argv)

    def load(saved: str) -> str:
        return f"--load '{folder / 'saved' / saved}' --ckpt-step {SAVED_AT}"

    runs = [
        run(name, model, ranks, options, f"--save '{folder / 'saved' / name}' --save-interval {SAVED_AT}")
        for name, (model, ranks, options) in SAVED.items()
    ]
    runs += [
        run(f"{saved} as {ranks} {options}", SAVED[saved][0], ranks, options, load(saved))
        for saved, ranks, options in CONTINUED
    ]
    runs.append(run(OTHER_PADDING, "llama", 1, ZERO, PADDED, load("padded TP2")))
    mixed_up = folder / "saved" / MIXED_UP
    saving = run(MIXED_UP, "gpt", 2, BUCKETS, f"--save '{mixed_up}' --save-interval {SAVED_AT}")
    runs.append(replace(saving, mutation=f"{__name__}:mix_up_states"))
    for precision in ("", "--bf16"):
        runs.append(run(f"{MIXED_UP} {precision}", "gpt", 1, ZERO, precision, load(MIXED_UP)))
    runs.append(run(NO_STATE, "gpt", 1, ZERO, load(MIXED_UP), "--no-load-optim"))
    return run_all(runs, folder / "runs")


@pytest.mark.parametrize(("saved", "ranks", "options"), CONTINUED)
def test_another_layout_continues(saved: str, ranks: int, options: str, curves: dict[str, Curve]) -> None:
    whole, rest = curves[saved], curves[f"{saved} as {ranks} {options}"]
    assert not whole.error + rest.error
    is_exact = "bf16" not in saved
    assert rest.losses == pytest.approx(whole.losses[SAVED_AT:], abs=1e-5 if is_exact else 5e-3)
    assert rest.grad_norms == pytest.approx(whole.grad_norms[SAVED_AT:], rel=1e-4 if is_exact else 2e-2)


def test_a_different_vocabulary_padding_is_refused_with_a_fix(curves: dict[str, Curve]) -> None:
    refused = curves[OTHER_PADDING]
    assert not refused.losses
    assert "has a padded vocabulary of 400 tokens, but this run has 300" in refused.error
    assert "set `make_vocab_size_divisible_by: 400`" in refused.error


@pytest.mark.parametrize("precision", ["", "--bf16"])
def test_states_of_other_parameters_are_refused(precision: str, curves: dict[str, Curve]) -> None:
    refused = curves[f"{MIXED_UP} {precision}"]
    assert not refused.losses
    assert "the state of the optimizer in the checkpoint does not belong to its weights" in refused.error
    whole, rest = curves[MIXED_UP], curves[NO_STATE]
    assert rest.losses[0] == pytest.approx(whole.losses[SAVED_AT], abs=1e-5)


def test_weights_may_be_rounded() -> None:
    precise = torch.randn(8, 3)
    for kind in (torch.float32, torch.bfloat16, torch.float16):
        assert is_rounded(precise.flatten(), precise.to(kind))
        assert not is_rounded(precise.roll(1, 0), precise.to(kind))


def test_positions_without_the_padding_of_buckets() -> None:
    buckets = [SimpleNamespace(offset=0, numel_unpadded=100), SimpleNamespace(offset=128, numel_unpadded=70)]
    positions = {"a": (0, 40, 0), "b": (64, 100, 0), "c": (128, 198, 1)}
    buffer = SimpleNamespace(buckets=buckets, param_index_map=positions)
    assert positions_without_padding(buffer) == {"a": (0, 40, 0), "b": (64, 100, 0), "c": (100, 170, 1)}
