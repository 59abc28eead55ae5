"""Leave out iterations, or judge them before their update."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flagscale.checks.steering import MAX_ROLLBACKS, ON_BAD_LOSS, ROLLBACK, SKIP, judges_losses
from flagscale.errors import RollBackError, UserError
from flagscale.formats import count
from megatron.flagscale.steering.bad_loss import RECENT, Rule, agreed, asking, fault_of, following
from megatron.flagscale.steering.passes import Comparison, compares, pass_clock
from megatron.flagscale.steering.rollback import (
    Rollback,
    read_rollbacks,
    settled,
    still_left_out,
    write_rollbacks,
)
from megatron.flagscale.steering.skipping import Skipped, read_past, skipped_by
from megatron.flagscale.steering.stopping import without_save

NO_UPDATE: tuple[Any, ...] = ({}, 1, False, False, 0, None, None, 0)
"""What the trainer's step returns for an iteration without losses and without an update."""


class Steering:
    """Decides on this rank, as on all others, what an iteration is for. Made when the first one begins."""

    def __init__(self, args: Any) -> None:
        self.args = args
        self.rollbacks = _shared_rollbacks(args)
        given = skipped_by(args)
        self.skipped = Skipped((*given.samples, *(one.skipped for one in self.rollbacks)), given.iterations)
        self.judges = judges_losses(vars(args))
        self.rule = Rule(args.bad_loss_factor, args.bad_loss_window)
        self.bad_losses = 0
        """Updates that were left out since this start because their loss was bad."""
        self.is_left_out = False
        """Whether the current iteration is left out, so that nothing is computed in it."""
        self._comparison = Comparison(args.slow_rank_factor) if compares(args) else None

    def figures(self) -> dict[str, Any]:
        """Return what is recorded with a logged iteration; all ranks have to call it together."""
        found: dict[str, Any] = {"bad_losses": self.bad_losses} if self.judges else {}
        if self._comparison and (slow := self._comparison.slow_ranks()):
            found["slow_ranks"] = slow
        return found

    def step(self, train: Callable[[Any], tuple[Any, ...]], schedule: Any, optimizer: Any, data: Any) -> Any:
        """Return the outcome of an iteration; `train(schedule)` trains with it as the trainer does."""
        from megatron.core.num_microbatches_calculator import get_current_global_batch_size

        args, batch = self.args, get_current_global_batch_size()
        first = args.consumed_train_samples
        self.is_left_out = self.skipped.has(args.curr_iteration, first, batch)
        if self.is_left_out:
            read_past(data)
            args.skipped_train_samples += batch
            return NO_UPDATE
        is_logged = (args.curr_iteration + 1) % args.log_interval == 0
        clock = pass_clock()
        clock.is_running = self._comparison is not None and is_logged
        try:
            return self._judged(train, schedule, optimizer, (first, first + batch))
        finally:
            clock.is_running = False

    def _judged(
        self, train: Callable[[Any], Any], schedule: Any, optimizer: Any, samples: tuple[int, int]
    ) -> Any:
        if not self.judges:
            return train(schedule)
        losses: list[Any] = []

        @functools.wraps(schedule)
        def remembering(*positional: Any, **named: Any) -> Any:
            losses[:] = schedule(*positional, **named)
            return losses

        with asking(optimizer, lambda norm: self._may_update(losses, norm, samples)):
            return train(remembering)

    def _may_update(self, losses: list[Any], grad_norm: float, samples: tuple[int, int]) -> bool:
        """Return whether the loss is fine, or react as the arguments say.

        Raises:
            UserError: the training has to stop, or to go back; on all ranks.
        """
        loss, is_finite = agreed(losses, grad_norm)
        recent = getattr(self.args, RECENT, [])
        fault = fault_of(loss, is_finite, recent, self.rule)
        setattr(self.args, RECENT, following(recent, loss, self.rule))
        if not fault:
            return True
        number, reaction = self.args.curr_iteration + 1, getattr(self.args, ON_BAD_LOSS)
        what = f"iteration {number}: {fault}"
        if reaction == SKIP:
            self.bad_losses += 1
            if self.args.rank == 0:
                place = f"samples {samples[0]} to {samples[1] - 1}"
                print(f"flagscale: {what}: no update with {place}", flush=True)
            return False
        if reaction == ROLLBACK and len(self.rollbacks) < getattr(self.args, MAX_ROLLBACKS):
            self._record(Rollback(number, fault, samples[1]))
            raise RollBackError(f"{what}: going back to the newest complete checkpoint")
        if reaction == ROLLBACK:
            times = count(len(self.rollbacks), "rollback")
            raise UserError(
                f"{what}, after {times}: look at its samples ({samples[0]} to {samples[1] - 1}), and raise "
                f"`{MAX_ROLLBACKS}` to go back again, or set `{ON_BAD_LOSS}: {SKIP}`"
            )
        hint = "set `on_bad_loss: skip` or `rollback` to continue without them"
        raise UserError(f"{what} (samples {samples[0]} to {samples[1] - 1}); {hint}")

    def _record(self, rollback: Rollback) -> None:
        import torch

        if self.args.rank == 0:
            write_rollbacks(Path(self.args.save), [*self.rollbacks, rollback])
        torch.distributed.barrier()  # no rank may end the others before this is written


def _shared_rollbacks(args: Any) -> tuple[Rollback, ...]:
    """Return the recorded rollbacks of this training, which rank 0 reads and completes for all ranks."""
    import torch

    if not args.save:
        return ()
    answer: list[Any] = [None]
    if args.rank == 0:
        try:
            found = read_rollbacks(Path(args.save))
            answer[0] = settled(found, args.consumed_train_samples)
            if answer[0] != found:
                write_rollbacks(Path(args.save), answer[0])
            for first, end in still_left_out(answer[0], args.consumed_train_samples):
                print(f"flagscale: after a rollback, samples {first} to {end - 1} are left out", flush=True)
        except (UserError, OSError) as error:
            answer[0] = error
    torch.distributed.broadcast_object_list(answer, src=0)
    if isinstance(answer[0], Exception):
        raise answer[0]
    shared: tuple[Rollback, ...] = answer[0]
    return shared


@functools.cache
def steering() -> Steering:
    """Return this process's steering; all ranks have to call it together for the first time."""
    from megatron.training import get_args

    return Steering(get_args())


def steered(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return the trainer's `train_step` that asks the steering what each iteration is for."""

    @functools.wraps(original)
    def train_step(
        forward_step: Any,
        data: Any,
        model: Any,
        optimizer: Any,
        scheduler: Any,
        config: Any,
        schedule: Any,
        **named: Any,
    ) -> Any:
        def train(used: Any) -> Any:
            return original(forward_step, data, model, optimizer, scheduler, config, used, **named)

        return without_save(steering().step(train, schedule, optimizer, data))

    return train_step
