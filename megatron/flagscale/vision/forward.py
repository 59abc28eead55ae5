"""One micro-batch of a model that sees pictures: the forward step that the trainer calls.

Nothing heavy is imported before the first call, because training programs import this module at their top.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from megatron.flagscale.forward import loss_func

if TYPE_CHECKING:
    import torch


def forward_step(data_iterator: Iterator[Any] | None, model: Any) -> tuple[torch.Tensor, Any]:
    """Run one micro-batch through this rank's part of the model; return its output and the loss function."""
    import functools

    from megatron.core.utils import get_attr_wrapped_model
    from megatron.training import get_args, get_timers

    from megatron.flagscale.vision.batch import get_batch
    from megatron.flagscale.vision.reading import is_first

    vp_stage = get_attr_wrapped_model(model, "vp_stage")
    timers = get_timers()
    timers("batch-generator", log_level=2).start()
    batch = get_batch(data_iterator, get_args(), vp_stage)
    timers("batch-generator").stop()
    pictures = {"media": batch["media"]} if is_first(vp_stage) else {}
    output = model(
        batch["tokens"],
        batch["position_ids"],
        batch["attention_mask"],
        labels=batch["labels"],
        loss_mask=batch["loss_mask"],
        **pictures,
    )
    return output, functools.partial(loss_func, batch["loss_mask"])
