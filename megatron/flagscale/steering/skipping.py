"""Leave out data: read the micro-batches of an iteration without training on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flagscale.checks.steering import ITERATIONS, SAMPLES, Range, ranges_of, touches


@dataclass(frozen=True)
class Skipped:
    """What a training leaves out: samples and iterations, both counted from 0."""

    samples: tuple[Range, ...] = ()
    iterations: tuple[Range, ...] = ()

    def has(self, iteration: int, consumed: int, batch: int) -> bool:
        """Return whether an iteration makes no update: after `consumed` samples it reads `batch` of them.

        It is left out as a whole if it reads one of the samples.
        """
        return touches(self.iterations, iteration, iteration + 1) or touches(
            self.samples, consumed, consumed + batch
        )


def skipped_by(args: Any) -> Skipped:
    """Return what the arguments leave out."""
    return Skipped(ranges_of(getattr(args, SAMPLES)), ranges_of(getattr(args, ITERATIONS)))


def read_past(data_iterator: Any) -> None:
    """Read this rank's micro-batches of an iteration, and drop them.

    `data_iterator` is what the trainer passes on: an iterator, None on a rank that reads nothing, or a list
    with one of them per chunk of the model.
    """
    from megatron.core.num_microbatches_calculator import get_num_microbatches
    from megatron.core.rerun_state_machine import get_rerun_state_machine

    from megatron.flagscale.supervision import heartbeat

    iterators: list[Iterator[Any] | None]
    iterators = data_iterator if isinstance(data_iterator, list) else [data_iterator]
    # It counts the iterations, and may ask to read them twice.
    machine = get_rerun_state_machine()
    while machine.should_run_forward_backward(data_iterator):
        for _ in range(get_num_microbatches()):
            heartbeat()
            for iterator in iterators:
                if iterator is not None:
                    next(iterator)
