"""Start a new training with the weights and the optimizer's state of a checkpoint (`finetune_with_optim`).

The engine's own `finetune` drops the state of the optimizer. Here it is loaded as in a run that continues,
but nothing else is: iteration, samples, schedule, learning rate and the states of random numbers are those of
a new run.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flagscale.checks.recorded import WITH_OPTIM
from flagscale.checks.resume import starts_over
from flagscale.errors import UserError
from flagscale.run.checkpoints import RELEASE

_STATE = ("params", "step")
"""What a parameter group holds besides settings; `step` counts the updates in some optimizers."""


def is_start(folder: Path | None, args: Any) -> bool:
    """Return whether this run starts from a checkpoint (its folder) in this way.

    Raises:
        UserError: it should, but there is no checkpoint.
    """
    if not getattr(args, WITH_OPTIM):
        return False
    if folder is None:
        raise UserError(f"`{WITH_OPTIM}`: no checkpoint in {args.pretrained_checkpoint or args.load}")
    return starts_over(vars(args)) or folder.parent != Path(args.load or "")


def check_state(folder: Path, saved: dict[str, Any]) -> None:
    """Raise `UserError` if a checkpoint has no state of an optimizer; `saved`: the arguments of its run."""
    if folder.name == RELEASE or saved.get("no_save_optim"):
        what = f"{folder} has no state of an optimizer"
        raise UserError(f"`{WITH_OPTIM}`: {what}: use `finetune: true` to start from its weights")


def load_with_optimizer(
    load_checkpoint: Callable[..., Any],
    folder: Path,
    model: Any,
    optimizer: Any,
    scheduler: Any,
    **named: Any,
) -> tuple[int, int]:
    """Load a checkpoint (its folder) by the engine's function; return what it returns for a new run.

    The state that is loaded includes settings of the optimizer, such as the learning rate: those of this run
    are put back.
    """
    from megatron.core.num_microbatches_calculator import update_num_microbatches
    from megatron.training import get_args

    args = get_args()
    settings = [
        {name: value for name, value in group.items() if name not in _STATE}
        for group in optimizer.param_groups
    ]
    is_own = folder.parent == Path(args.load or "")
    given, args.no_load_rng = args.no_load_rng, True
    try:
        # Without a schedule, the engine does not look for one in the checkpoint.
        where = "load" if is_own else "pretrained_checkpoint"
        load_checkpoint(model, optimizer, None, load_arg=where, **named)
    finally:
        args.no_load_rng = given
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)
    args.consumed_train_samples = args.consumed_valid_samples = args.skipped_train_samples = 0
    update_num_microbatches(0, consistency_check=False)
    scheduler.step(0)
    return 0, 0
