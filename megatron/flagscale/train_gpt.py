"""Train a GPT model with Megatron's own trainer: `torchrun ... -m megatron.flagscale.train_gpt ARGUMENTS`.

Saving a checkpoint spawns a process that imports this module again: nothing heavy, and no effect but
`die_with_parent`, may happen at import.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from megatron.flagscale.supervision import die_with_parent, heartbeat, write_stacks_when_asked

if TYPE_CHECKING:
    import torch


def train(argv: list[str]) -> None:
    """Train as the arguments say; `UserError` for what a user can mend."""
    from megatron.flagscale.bootstrap import adapt, prepare_platform
    from megatron.flagscale.hetero.arguments import own_part

    part = own_part(argv)
    sys.argv[1:] = prepare_platform(part.argv if part else argv)

    from megatron.core.enums import ModelType
    from megatron.training import pretrain
    from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args

    from megatron.flagscale.args import parse
    from megatron.flagscale.data import build_datasets
    from megatron.flagscale.hetero import join, parse_own
    from megatron.flagscale.recompute import schedule_recompute

    args = parse_own(part) if part else parse()
    model_config = gpt_config_from_args(args)
    adapt(model_config, args)
    schedule_recompute(model_config, args)
    seams = {}
    if part:
        seams = join(part, args, model_config)
    pretrain(
        pretrain_cfg_container_from_args(args, model_config),
        build_datasets,
        ModelType.encoder_or_decoder,
        forward_step,
        **seams,
    )


def forward_step(data_iterator: Iterator[Any] | None, model: Any) -> tuple[torch.Tensor, Any]:
    """Run one micro-batch through this rank's part of the model; the trainer calls the returned function."""
    import functools

    from megatron.core.utils import get_attr_wrapped_model
    from megatron.training import get_timers

    from megatron.flagscale.data import get_batch

    heartbeat()
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
    )
    return output, functools.partial(loss_func, batch["loss_mask"])


def loss_func(
    loss_mask: torch.Tensor, losses: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Return the summed loss of the counted tokens, their number, and both for the report, all in float."""
    import torch

    mask = loss_mask.reshape(-1).float()
    loss = torch.sum(losses.reshape(-1).float() * mask)
    _refuse_broken(loss)
    num_tokens = mask.sum().detach()
    report = torch.stack([loss.detach(), num_tokens])
    return loss * _context_weight(num_tokens), num_tokens.to(torch.int), {"lm loss": report}


def _context_weight(num_tokens: torch.Tensor) -> torch.Tensor | float:
    """Return what makes the mean over this rank's tokens its share of its context parallel group's mean.

    The trainer takes each rank's mean and then the mean over ranks: wrong where one part of a sample has more
    masked tokens than another. With `--calculate-per-token-loss` it sums over ranks first.
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
    """Stop at a loss that is no number, unless the arguments say not to look."""
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


def main() -> int:
    """Run one rank. A user's mistake ends it with exit code 2, anything else with its traceback and 1.

    Both leave the structured error file that torchrun asked for; torchrun then tells a mistake in one line.
    """
    from torch.distributed.elastic.multiprocessing.errors import record

    from flagscale.errors import UserError

    try:
        record(train)(sys.argv[1:])
    except UserError as error:
        if "TORCHELASTIC_ERROR_FILE" not in os.environ:
            print("\n".join(f"error: {problem}" for problem in error.problems), file=sys.stderr)
        code = error.exit_code
    except Exception:
        traceback.print_exc()
        code = 1
    else:
        return 0
    # At once: tearing down process groups whose peers are gone can take forever, and hides who failed first.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ in ("__main__", "__mp_main__"):
    die_with_parent()

if __name__ == "__main__":
    write_stacks_when_asked()
    sys.exit(main())
