"""FlagScale v0.6.0's ramp-up of the batch size, translated: the real engine takes the same batches."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from flagscale.checks.schedule import batch_sizes, whole_batches
from flagscale.config.engine_args import FlatKey
from flagscale.config.source_map import SourceMap
from flagscale.config.v060.derived import batch_steps, samples_taken, with_batch_schedule
from flagscale.errors import Problem
from flagscale_testing.ranks.forked import Run, run_all
from flagscale_testing.ranks.training import MOCK_DATA, MODEL, read_metrics

RAMPS = [
    (32, 32, 2_000_000, 1024, 4096),  # Aquila 34B
    (48, 48, 2_000_000, 1056, 4096),  # Aquila 70B
    (16, 8, 300_000, 1024, 2048),
    (2, 2, 20, 8, 64),
    (1, 1, 3, 7, 64),  # several increments per sample
    (4, 4, 0, 8, 64),
    (8, 4, 100, 8, 64),
]
"""First batch size, increment, samples, global batch size, sequence length."""


def in_v060(start: int, increment: int, samples: int, batch: int, consumed: int) -> int:
    """Return the batch size after `consumed` samples in v0.6.0 (num_microbatches_calculator.py:441-449)."""
    if consumed > samples or not samples or start == batch:
        return batch
    return start + int(consumed / (samples / ((batch - start) // increment))) * increment


def schedule_of(start: int, increment: int, samples: int, batch: int, length: int) -> str:
    """Return the schedule that the translation makes of a ramp."""
    tree = {
        "rampup_batch_size": [start, increment, samples],
        "global_batch_size": batch,
        "seq_length": length,
        "train_samples": 10 * (samples + batch),
    }
    problems: list[Problem] = []
    keys = [FlatKey(name, value, name) for name, value in tree.items()]
    changed = with_batch_schedule(keys, SourceMap(), problems, [])
    assert problems == []
    values = {key.name: key.value for key in changed}
    return str(values.get("step_batch_size_schedule", f"0:{batch}"))


@pytest.mark.parametrize("ramp", RAMPS)
def test_the_engine_reads_the_batch_sizes_of_v060_from_the_schedule(ramp: tuple[int, ...]) -> None:
    from megatron.core.num_microbatches_calculator import StepBatchsizeNumMicroBatchesCalculator

    *numbers, batch, length = ramp
    text = schedule_of(*ramp)
    engine = StepBatchsizeNumMicroBatchesCalculator(1, 1, False, 1, text, length)
    assert engine.schedule == [*batch_steps(*numbers, batch).items()] == batch_sizes(text, length)
    near = {one + by for one, _ in engine.schedule for by in (-1, 0, 1)} | {
        numbers[2] + by for by in (-1, 0, 1)
    }
    for consumed in sorted(one for one in near if one >= 0):
        assert engine._get_batch_size_for_samples(consumed) == in_v060(*numbers, batch, consumed), consumed


@pytest.mark.parametrize("ramp", [ramp for ramp in RAMPS if ramp[2] and ramp[0] < ramp[3]])
@pytest.mark.parametrize("samples", [1, 19, 20, 21, 44, 99, 1001, 2_100_001])
def test_the_samples_that_v060_trained_on(ramp: tuple[int, ...], samples: int) -> None:
    start, increment, over, batch, _ = ramp
    steps = batch_steps(start, increment, over, batch)
    consumed = 0
    while consumed <= over and consumed <= samples:
        consumed += in_v060(start, increment, over, batch, consumed)
    expected = consumed + max(0, samples - consumed) // batch * batch
    assert samples_taken(steps, over, samples) == expected
    before, after = whole_batches([*steps.items()], samples)
    assert before <= samples <= after
    assert whole_batches([*steps.items()], expected) == (expected, expected)


@pytest.mark.slow
def test_a_training_takes_the_batches_of_v060(tmp_path: Path) -> None:
    start, increment, samples, batch, length = 2, 2, 20, 8, 64
    expected = [0]
    while expected[-1] < 44:
        expected.append(expected[-1] + in_v060(start, increment, samples, batch, expected[-1]))
    index = MODEL.index("--global-batch-size")
    argv = (
        *(*MODEL[:index], *MODEL[index + 2 :], *MOCK_DATA, "--train-samples", str(expected[-1])),
        *("--step-batch-size-schedule", schedule_of(start, increment, samples, batch, length)),
        *("--eval-global-batch-size", str(batch)),
    )
    curve = run_all([Run("run", 1, argv)], tmp_path)["run"]
    assert not curve.error
    consumed = [
        line["consumed_samples"]
        for line in read_metrics(tmp_path / "run" / "metrics.jsonl")
        if "lm_loss" in line
    ]
    assert consumed == expected[1:]
    assert {later - earlier for earlier, later in pairwise(expected)} == {2, 4, 6, 8}
