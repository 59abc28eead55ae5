"""How a training ends at a NaN loss that the engine finds itself (`check_for_nan_in_loss_and_grad`).

The engine repeats the iteration. If the loss is NaN again, it saves a checkpoint in which it is about to
repeat the iteration on another device, and exits with a code that only its own launcher knows. A run that
resumes from this checkpoint always exits at its first iteration, whatever its loss is
(megatron-core 0.19.2, `RerunStateMachine.should_checkpoint_and_exit`). Here it is not saved.
"""

from __future__ import annotations

from typing import Any

from flagscale.checks.steering import ON_BAD_LOSS, ROLLBACK, SAMPLES, SKIP
from flagscale.errors import UserError

_SHOULD_SAVE = 2
"""The place of this answer in the outcome of the trainer's step."""


def without_save(outcome: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the outcome of a step, which does not ask for a checkpoint: it would end every run."""
    return (*outcome[:_SHOULD_SAVE], False, *outcome[_SHOULD_SAVE + 1 :])


def why_it_exits(code: object, args: Any) -> UserError | None:
    """Return what to tell the user if the trainer exits with this code; None if no bad loss is the reason."""
    from megatron.core.num_microbatches_calculator import get_current_global_batch_size
    from megatron.core.rerun_state_machine import EXIT_CODE_RESUME_TO_DISAMBIGUATE

    if code != EXIT_CODE_RESUME_TO_DISAMBIGUATE:
        return None
    first = args.consumed_train_samples
    end = first + get_current_global_batch_size()
    what = f"iteration {args.curr_iteration + 1}: the loss is NaN or infinite, also when it was repeated"
    instead = f"set `{ON_BAD_LOSS}: {SKIP}` or `{ROLLBACK}`, or `{SAMPLES}: [{first}, {end}]`"
    return UserError(f"{what} (samples {first} to {end - 1}); {instead} to continue without them")
