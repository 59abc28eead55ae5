"""Samples that cannot be used: each is named, counted where it was read, and reported where it is missed.

Energon 7.4.1 passes a sample that fails to a handler in the process that reads, and goes on with the next.
The count travels with the next micro-batch of that reader. So it belongs to the micro-batches that were
trained, whatever the readers have read ahead, and a resumed run counts each sample once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from megatron.energon import WorkerConfig
from megatron.energon.errors import FatalSampleError
from megatron.energon.flavors.base_dataset import SavableDataset
from megatron.energon.wrappers.base import BaseWrapperDataset

from flagscale.errors import UserError, first_line

SKIPPED = "skipped"
"""In a micro-batch, the messages about samples that were skipped before it; the loader takes them out."""


class SkippedSamples:
    """The samples that this process has skipped since the last micro-batch; every reader has its own."""

    def __init__(self) -> None:
        self._messages: list[str] = []

    def note(self, error: Exception, sample: Any, sources: list[Any] | None) -> None:
        """Note a sample that failed: the handler of Energon's worker configuration."""
        self._messages.append(f"{_name(sample, sources)}: {first_line(error)}")

    def take(self) -> list[str]:
        """Return the messages since the last call."""
        messages, self._messages = self._messages, []
        return messages


class WithSkipped(BaseWrapperDataset[Any, Any]):
    """The micro-batches of a dataset, each with the messages about samples skipped before it.

    If samples were skipped after the last one, a dict with only their messages follows.
    """

    def __init__(
        self, dataset: SavableDataset[Any], noted: SkippedSamples, worker_config: WorkerConfig
    ) -> None:
        super().__init__(dataset, worker_config=worker_config)
        self._noted = noted

    def __iter__(self) -> Iterator[dict[str, Any]]:
        try:
            for batch in self.dataset:
                yield {**batch, SKIPPED: self._noted.take()}
        except FatalSampleError as error:
            # From a process that reads, only the text arrives.
            raise FatalSampleError("\n".join([str(error), *self._noted.take()[-1:]])) from error
        if rest := self._noted.take():
            yield {SKIPPED: rest}

    def len_worker(self, worker_idx: int | None = None) -> int:
        return int(self.dataset.len_worker(worker_idx))

    def reset_state_own(self) -> None:
        self._noted.take()

    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = self.dataset.config()
        return config


def usable(batches: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield micro-batches of Energon.

    Raises:
        UserError: a hundred samples in a row cannot be used.
    """
    try:
        yield from batches
    except FatalSampleError as error:
        if "times in a row" not in str(error):
            raise  # a bug, such as a name that is not defined
        what = f"100 samples in a row cannot be used; the last one is {str(error).splitlines()[-1]}"
        raise UserError(f"{what}; the others are in the output above") from error


def report(messages: Sequence[str]) -> None:
    """Print the messages about skipped samples."""
    for message in messages:
        print(f"flagscale: skipped {message}", flush=True)


def _name(sample: Any, sources: list[Any] | None) -> str:
    """Return the key of a sample and the shard that holds it, as far as they are known."""
    if isinstance(sample, list | tuple) and sample:
        sample = sample[0]
    key = sample.get("__key__") if isinstance(sample, dict) else getattr(sample, "__key__", None)
    places = [f"{source.dataset_path}/{source.shard_name}" for source in sources or ()]
    return f"sample {key or '?'}" + (f" of {places[0]}" if places else "")
