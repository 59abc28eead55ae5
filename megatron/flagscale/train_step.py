"""The patch of the trainer's step: each iteration may be recorded, left out, or judged before its update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron.flagscale.patching import Patch
from megatron.flagscale.steering.steps import steered
from megatron.flagscale.tracing import recorded


def _replaced(original: Callable[..., Any]) -> Callable[..., Any]:
    return recorded(steered(original))


PATCHES = (
    Patch(
        "megatron.training.training:train_step",
        _replaced,
        "It has no callback between the gradients and the update. The engine's own `iterations_to_skip` "
        "skips what follows an iteration too (the log, an evaluation, a checkpoint), and reads the data as "
        "batches of text on every stage, also if it has none. Its use of torch's profiler counts iterations "
        "from where the run started, so that a resumed run records none or others, needs `tensorboard_dir`, "
        "and keeps one trace per rank; its memory snapshot is the last rank's alone.",
        "worker",
        until="the trainer has a callback before the update, skips iterations inside its step, and profiles "
        "the iterations of the training into a folder that is an argument",
    ),
)
