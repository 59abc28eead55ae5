"""The learning-rate schedule that the engine does not have (`flagscale.checks.stablelm2`)."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

from flagscale.checks.stablelm2 import (
    ALPHA,
    BETA,
    COSINE,
    COSINE_MAX,
    DECAY,
    PERIOD,
    RSQRT,
    STYLE,
    learning_rate,
)
from flagscale.formats import option_of
from megatron.flagscale.patching import Patch


def add_schedule_args(group: argparse._ArgumentGroup) -> None:
    """Add the arguments of the schedule, with v0.6.0's names and defaults."""
    for name, default, meaning in (
        (COSINE, 0, "Samples of warm-up and cosine together."),
        (PERIOD, 0, "Samples after which the cosine repeats; 0: the length of the schedule."),
        (RSQRT, 0, "Samples of the inverse square root, alpha / sqrt(samples / global batch size + beta)."),
        (DECAY, 0, "Samples of the linear decay to --min-lr; 0: to zero at the end of the schedule."),
        (COSINE_MAX, None, "The learning rate where the cosine begins; its least is a tenth of it."),
        (ALPHA, 1.0, "Numerator of the inverse square root."),
        (BETA, 0.0, "Offset under the inverse square root, in steps."),
    ):
        group.add_argument(
            option_of(name),
            type=int if default == 0 and isinstance(default, int) else float,
            default=default,
            help=f"With --lr-decay-style {STYLE}: {meaning}",
        )


def _with_stablelm2(original: Callable[..., float]) -> Callable[..., float]:
    @functools.wraps(original)
    def get_lr(self: Any, param_group: dict[str, Any]) -> float:
        from megatron.training.global_vars import get_args

        is_warm = self.num_steps > self.lr_warmup_steps or not self.lr_warmup_steps
        if self.lr_decay_style != STYLE or not is_warm or self.num_steps > self.lr_decay_steps:
            return original(self, param_group)
        return learning_rate(self.num_steps, self.lr_decay_steps, vars(get_args()))

    return get_lr


PATCHES = (
    Patch(
        "megatron.core.optimizer_param_scheduler:OptimizerParamScheduler.get_lr",
        _with_stablelm2,
        "It knows a fixed list of styles.",
        "worker",
        until="styles can be registered",
    ),
)
