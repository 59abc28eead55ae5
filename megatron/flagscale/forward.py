"""One micro-batch of a GPT model: the forward step and the loss that the trainer calls.

Nothing heavy is imported before the first call, because training programs import this module at their top.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PADDING = "padding_mask"
"""Of a batch that has it: True where a token is padding, which the routers of experts do not count."""


def forward_step(data_iterator: Iterator[Any] | None, model: Any) -> tuple[torch.Tensor, Any]:
    """Run one micro-batch through this rank's part of the model; return its output and the loss function."""
    from megatron.flagscale.data import get_batch

    return step(data_iterator, model, get_batch)


def step(
    data_iterator: Iterator[Any] | None, model: Any, get_batch: Callable[..., dict[str, Any]]
) -> tuple[torch.Tensor, Any]:
    """Do the same with the batch that `get_batch(data_iterator, vp_stage)` returns."""
    import functools

    from megatron.core.utils import get_attr_wrapped_model
    from megatron.training import get_timers

    timers = get_timers()
    timers("batch-generator", log_level=2).start()
    batch = get_batch(data_iterator, get_attr_wrapped_model(model, "vp_stage"))
    timers("batch-generator").stop()
    output = model(
        batch["tokens"],
        batch["position_ids"],
        batch["attention_mask"],
        labels=batch["labels"],
        loss_mask=batch["loss_mask"],
        **{name: batch[name] for name in (PADDING,) if name in batch},
    )
    return output, functools.partial(loss_func, batch["loss_mask"])


def loss_func(
    loss_mask: torch.Tensor, losses: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Return the summed loss of the counted tokens, their number, and both as floats for the report."""
    import torch

    mask = loss_mask.reshape(-1).float()
    loss = torch.sum(losses.reshape(-1).float() * mask)
    _refuse_broken(loss)
    num_tokens = mask.sum().detach()
    report = torch.stack([loss.detach(), num_tokens])
    return loss * _context_weight(num_tokens), num_tokens.to(torch.int), {"lm loss": report}


def _context_weight(num_tokens: torch.Tensor) -> torch.Tensor | float:
    """Return the factor that turns this rank's mean loss into its share of the context parallel group's mean.

    The trainer averages the means of the ranks, which is wrong if one part of a sample has more masked tokens
    than another. With `--calculate-per-token-loss` it sums over ranks first.
    """
    import torch.distributed
    from megatron.core import mpu
    from megatron.training import get_args

    group = mpu.get_context_parallel_group()
    if group.size() == 1 or get_args().calculate_per_token_loss:
        return 1.0
    whole = num_tokens.clone()
    torch.distributed.all_reduce(whole, group=group)
    return num_tokens.clamp(min=1) * group.size() / whole.clamp(min=1)


def _refuse_broken(loss: torch.Tensor) -> None:
    """Stop if the loss is NaN or infinite, unless the arguments turn this check off."""
    import torch
    from megatron.core.rerun_state_machine import get_rerun_state_machine
    from megatron.training import get_args

    if get_args().check_for_nan_in_loss_and_grad:
        for is_broken, name in ((torch.isnan, "NaN"), (torch.isinf, "Inf")):
            get_rerun_state_machine().validate_result(
                result=loss,
                rejection_func=is_broken,
                message=f"found {name} in the loss of this rank",
                tolerance=0.0,
                fatal=True,
            )
