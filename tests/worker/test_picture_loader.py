"""The loader of pictures with real Energon on tiny folders: a resumed run loses and repeats no sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from energon_flagscale import state
from energon_flagscale.training_data import Readers, TrainingData, training_dataset
from energon_flagscale.validation_data import evaluations, validation_dataset
from flagscale.errors import UserError
from flagscale_testing.energon import NumberEncoder, numbers, write_folder, write_numbers

SAMPLES = 32
ONE = Readers(rank=0, ranks=1, workers=0, micro_batch_size=1, shuffle_buffer_size=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_numbers(tmp_path_factory.mktemp("energon") / "numbers", SAMPLES))


@pytest.fixture(autouse=True)
def opened() -> Iterator[None]:
    yield
    loaders.clear()  # which ends the processes that read


loaders: list[TrainingData] = []


def begin(
    path: str,
    readers: Readers,
    places: Sequence[state.Place] = (),
    broken: Sequence[int] = (),
    limit: int | None = None,
) -> list[TrainingData]:
    """Return the data of all ranks."""
    opened = []
    for rank in range(readers.ranks):
        own = replace(readers, rank=rank)
        dataset = training_dataset(path, NumberEncoder(broken), own)
        opened.append(TrainingData(dataset, own, places[rank] if places else None, limit))
    loaders.extend(opened)
    return opened


def take(data: Sequence[TrainingData], batches: int) -> list[int]:
    """Return the numbers in the next micro-batches of all ranks, rank by rank in each round."""
    return [
        number for _ in range(batches) for one in data for number in next(one)["tokens"].flatten().tolist()
    ]


def saved(data: Sequence[TrainingData], checkpoint: Path, ranks: int) -> list[state.Place]:
    """Return the places of `ranks` ranks in a checkpoint that these ranks have saved."""
    for rank, one in enumerate(data):
        state.write(checkpoint, rank, one.place())
    return [state.read(checkpoint, len(data), rank, ranks) for rank in range(ranks)]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_sample_comes_once_per_epoch(folder: str, workers: int) -> None:
    data = begin(folder, replace(ONE, ranks=2, workers=workers))
    for _ in range(2):
        assert sorted(take(data, SAMPLES // 2)) == [*range(SAMPLES)]


@pytest.mark.parametrize(("workers", "before"), [(0, 0), (0, 1), (0, 20), (2, 0), (2, 5)])
def test_a_resumed_run_reads_what_the_other_would_have_read(
    folder: str, tmp_path: Path, workers: int, before: int
) -> None:
    readers = replace(ONE, workers=workers, micro_batch_size=2)
    data = begin(folder, readers)
    take(data, before)
    places = saved(data, tmp_path, 1)
    assert take(begin(folder, readers, places), 20) == take(data, 20)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_is_saved_soon_after_it_was_resumed(folder: str, tmp_path: Path, workers: int) -> None:
    readers = replace(ONE, workers=workers)
    data = begin(folder, readers)
    take(data, 5)
    again = begin(folder, readers, saved(data, tmp_path, 1))
    for _ in range(2):
        assert take(again, 1) == take(data, 1)
        again = begin(folder, readers, saved(again, tmp_path, 1))
    assert take(again, 10) == take(data, 10)


DIVISIONS = [((1, 4), (2, 2)), ((2, 2), (4, 0)), ((4, 0), (1, 4))]


@pytest.mark.parametrize(("before", "after"), DIVISIONS)
def test_the_same_readers_are_divided_among_other_ranks(
    folder: str, tmp_path: Path, before: tuple[int, int], after: tuple[int, int]
) -> None:
    ranks, workers = before
    data = begin(folder, replace(ONE, ranks=ranks, workers=workers))
    read = take(data, 3)  # so that some readers are a micro-batch ahead of others
    ranks, workers = after
    again = begin(folder, replace(ONE, ranks=ranks, workers=workers), saved(data, tmp_path, ranks))
    read += take(again, (SAMPLES - len(read)) // ranks)
    assert len(read) >= SAMPLES - 2
    assert len({*read}) == len(read)


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_samples_are_counted_once(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    readers, broken = replace(ONE, workers=workers), [3, 30]
    data = begin(folder, readers, broken=broken)
    good = SAMPLES - len(broken)
    read, counts = [], []
    for part in (10, 10, good - 20):
        read += take(data, part)
        counts.append(data[0].skipped)
        data = begin(folder, readers, saved(data, tmp_path, 1), broken)
    assert sorted([*read, *broken]) == [*range(SAMPLES)]
    assert counts == sorted(counts)
    take(data, good)
    assert len(broken) <= data[0].skipped <= 2 * len(broken)
    assert "skipped sample 000030 of " in capsys.readouterr().out


def test_too_many_skipped_samples_end_the_training(folder: str) -> None:
    data = begin(folder, ONE, broken=[1, 2, 3], limit=2)
    with pytest.raises(UserError, match="3 samples could not be used, but `max_skipped_samples` is 2"):
        take(data, SAMPLES)


def test_nothing_but_broken_samples(folder: str) -> None:
    for workers in (0, 2):
        data = begin(folder, replace(ONE, workers=workers), broken=range(SAMPLES))
        what = "100 samples in a row cannot be used; the last one is sample .*: the picture of .* is broken;"
        with pytest.raises(UserError, match=what):
            take(data, 1)


def test_more_readers_than_samples(folder: str) -> None:
    with pytest.raises(UserError, match="split `train` has 32 samples for 34 readers"):
        begin(folder, replace(ONE, ranks=17, workers=2))


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"version": 2}', '{"version": 1, "readers": {"os": 1}}']
)
def test_a_damaged_state_is_reported(tmp_path: Path, content: str) -> None:
    file = tmp_path / "loader" / "rank_00000.json"
    file.parent.mkdir()
    file.write_text(content)
    with pytest.raises(UserError, match="not a loader's place in the data"):
        state.read(tmp_path, 1, 0, 1)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        state.read(tmp_path, 2, 1, 2)


BLENDS = {
    "blend": "{{weight: 3, path: {one}}}, {{weight: 1, path: {two}}}",
    "blend_epochized": "{{repetitions: 1, path: {one}}}, {{repetitions: 2, path: {two}}}",
}


@pytest.mark.parametrize("kind", BLENDS)
@pytest.mark.parametrize("batches", [3, 14])
def test_a_blend_is_resumed(tmp_path: Path, kind: str, batches: int) -> None:
    for name, first in (("one", 0), ("two", 100)):
        write_numbers(tmp_path / name, 8, first)
    blend = tmp_path / "blend.yaml"
    entries = BLENDS[kind].format(one="one", two="two")
    text = "__module__: megatron.energon\n__class__: MetadatasetV2\nsplits:\n  train:\n"
    blend.write_text(f"{text}    {kind}: [{entries}]\n")
    data = begin(str(blend), ONE)
    read = take(data, batches)
    again = begin(str(blend), ONE, saved(data, tmp_path, 1))
    following = take(data, 40)
    assert take(again, 40) == following
    if kind == "blend_epochized":
        once, twice = [*range(8)], [*range(100, 108)]
        assert sorted([*read, *following][:24]) == sorted([*once, *twice, *twice])
    else:
        assert sum(number < 100 for number in following) > 20  # about three of four


@pytest.mark.parametrize("workers", [0, 2])
def test_each_evaluation_reads_the_same(folder: str, tmp_path: Path, workers: int) -> None:
    path = str(write_folder(tmp_path / "valid", numbers(10), split=(0.0, 1.0, 0.0)))
    masked = {"tokens": torch.tensor([[-1]])}
    readers = replace(ONE, workers=workers)
    for batches, expected in ((2, 4), (8, 10)):
        dataset = validation_dataset([path], NumberEncoder(), readers, 2, batches)
        data = evaluations(dataset, batches, masked)
        first, second = (
            [batch["tokens"].flatten().tolist() for batch in islice(data, batches)] for _ in "12"
        )
        assert first == second
        assert len(first) == batches
        found = [number for batch in first for number in batch if number >= 0]
        assert len({*found}) == len(found) == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_an_evaluation_names_all_samples_that_it_skips(
    tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_folder(tmp_path / "valid", numbers(4), 1, split=(0.0, 1.0, 0.0)))
    readers = replace(ONE, workers=workers)
    for broken, batches in (([3], [0, 1, 2, -1]), (range(4), [-1] * 4)):
        dataset = validation_dataset([path], NumberEncoder(broken), readers, 1, 4)
        data = evaluations(dataset, 4, {"tokens": torch.tensor([[-1]])})
        capsys.readouterr()
        assert [int(batch["tokens"]) for batch in islice(data, 8)] == batches * 2
        output = capsys.readouterr().out
        assert output.count("flagscale: skipped sample") == len(
            broken
        )  # only the first evaluation names them
        assert ("no sample of the evaluation can be used" in output) == (len(broken) == 4)
