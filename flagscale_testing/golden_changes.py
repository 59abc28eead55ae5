"""Changes of the trainings with golden losses: some must be noticed by a comparison, and some must not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flagscale_testing.golden_losses import CASES, ONE, difference, golden, run_of
from flagscale_testing.ranks.forked import Run, run_all


@dataclass(frozen=True)
class Change:
    """What is different in the training of a case: arguments, or a function that each rank calls first.

    It runs in one process unless `ranks` is 2; the layout changes nothing, as `SAME` shows.
    """

    case: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    mutation: str = ""
    ranks: int = 1

    def run(self, name: str, folder: Path) -> Run:
        layout = {} if self.ranks == 2 else ONE
        case, changes = CASES[self.case], {**layout, **self.arguments}
        return run_of(name, case, folder, ranks=self.ranks, mutation=self.mutation, **changes)


_HERE = __name__
WRONG: Mapping[str, Change] = {
    "rotary base x 2": Change("llama3_8b", {"rotary_base": 1_000_000}),
    "no scaling of rotary positions": Change(
        "llama3_8b", {"use_rope_scaling": None, "rope_scaling_factor": None}
    ),
    "norm epsilon 1e-5 -> 1e-3": Change("llama3_8b", {"norm_epsilon": 1e-3}),
    "norm epsilon 1e-5 -> 1e-6": Change("llama3_8b", {"norm_epsilon": 1e-6}),
    "initial weights + 1%": Change("llama3_8b", {"init_method_std": 0.1616}),
    "learning rate + 1%": Change("llama3_8b", {"lr": 1.01e-3}),
    "learning rate + 0.1%": Change("llama3_8b", {"lr": 1.001e-3}),
    "weight decay 0.1 -> 0.11": Change("llama3_8b", {"weight_decay": 0.11}),
    "second moment's beta 0.95 -> 0.951": Change("llama3_8b", {"adam_beta2": 0.951}),
    "gradients clipped at 0.99": Change("llama3_8b", {"clip_grad": 0.99}),
    "dropout of 0.01": Change("llama3_8b", {"hidden_dropout": 0.01}),
    "eight tokens not in the loss": Change("llama3_8b", mutation=f"{_HERE}:mask_the_start"),
    "another order of the data": Change("llama3_8b", mutation=f"{_HERE}:shuffle_otherwise"),
    "no norm of queries and keys": Change("qwen3_8b", {"qk_layernorm": None}),
    "three experts instead of two": Change("mixtral_8x7b", {"moe_router_topk": 3}),
    "balance of experts x 2": Change("mixtral_8x7b", {"moe_aux_loss_coeff": 0.04}),
    "routed experts scaled + 1%": Change("deepseek_demo", {"moe_router_topk_scaling_factor": 2.525}),
    "expert bias not updated": Change("deepseek_demo", {"moe_router_bias_update_rate": 0}),
    "loss of the prediction head + 1%": Change("deepseek_demo", {"mtp_loss_scaling_factor": 0.303}),
}
"""Changes of what is computed, by what they do; docs/recipes.md shows how much each changes the losses."""
UNNOTICED = (
    "norm epsilon 1e-5 -> 1e-6",
    "weight decay 0.1 -> 0.11",
    "second moment's beta 0.95 -> 0.951",
    "gradients clipped at 0.99",
)
"""Those that change no loss by more than the tolerance."""
SAME: Mapping[str, Change] = {
    **{f"{name}, again": Change(name, ranks=2) for name in CASES},
    **{f"{name}, one process": Change(name) for name in CASES},
    **{
        f"{name}, another layout": Change(name, {**ONE, **case.other}, ranks=2)
        for name, case in CASES.items()
    },
    **{f"{name}, two threads": Change(name, mutation=f"{_HERE}:use_two_threads") for name in CASES},
}
"""Changes that only round otherwise."""


def differences(changes: Mapping[str, Change], names: Iterable[str], folder: Path) -> dict[str, float]:
    """Return, by name, the largest relative difference of the losses from the golden ones."""
    chosen = {name: changes[name] for name in names}
    curves = run_all([change.run(name, folder) for name, change in chosen.items()], folder / "runs")
    failed = {name: curve.error for name, curve in curves.items() if curve.error}
    assert not failed, failed
    return {name: difference(curves[name], golden(change.case)["losses"]) for name, change in chosen.items()}


def mask_the_start() -> None:
    """Leave the first eight tokens of each sample out of the loss."""
    from megatron.flagscale import data

    get_batch = data.get_batch

    def masked(*args: Any) -> dict[str, Any]:
        batch: dict[str, Any] = get_batch(*args)
        batch["loss_mask"][:, :8] = 0
        return batch

    vars(data)["get_batch"] = masked


def shuffle_otherwise() -> None:
    """Read the samples in another order; the seed of the weights stays."""
    from megatron.core.datasets import gpt_dataset

    shuffled = gpt_dataset._build_shuffle_index

    def otherwise(*args: Any) -> Any:
        return shuffled(*args)[::-1].copy()

    vars(gpt_dataset)["_build_shuffle_index"] = otherwise


def use_two_threads() -> None:
    """Compute with two threads, which add in another order."""
    import torch

    torch.set_num_threads(2)
