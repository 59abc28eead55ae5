"""The check of `.bin/.idx`, which imports only the standard library: each damage has its own message."""

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagscale.checks import indexed
from flagscale_testing.pairs import LENGTHS, write_pair


def test_a_valid_pair_has_no_problems(weird_path: Path) -> None:
    prefix = weird_path / "train.v1_text_document"
    write_pair(prefix)
    assert indexed.problems(prefix) == indexed.problems(prefix, thorough=True) == []
    assert indexed.summary(prefix) == indexed.Summary(3, 3, 9, "uint16", 9 * 2 + 34 + 3 * 12 + 4 * 8)


def test_a_pair_that_megatron_wrote_is_valid(tmp_path: Path) -> None:
    megatron = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    for number, dtype in enumerate((megatron.numpy.uint16, megatron.numpy.int32)):
        prefix = tmp_path / str(number)
        builder = megatron.IndexedDatasetBuilder(str(indexed.bin_path(prefix)), dtype=dtype)
        for length in LENGTHS:
            builder.add_document(list(range(length)), [length])
        builder.finalize(str(indexed.idx_path(prefix)))
        assert indexed.problems(prefix, thorough=True) == []
        held = indexed.summary(prefix)
        assert (held.documents, held.tokens, held.dtype) == (3, 9, dtype.__name__)
        assert len(megatron.IndexedDataset(str(prefix))) == 3


def _swap(prefix: Path) -> None:
    bin_path, idx_path = indexed.bin_path(prefix), indexed.idx_path(prefix)
    bin_path.rename(prefix)
    idx_path.rename(bin_path)
    prefix.rename(idx_path)


def _cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no bin": (lambda prefix: indexed.bin_path(prefix).unlink(), "p.bin: no such file"),
    "no idx": (lambda prefix: indexed.idx_path(prefix).unlink(), "p.idx: no such file"),
    "cut bin": (
        lambda prefix: _cut(indexed.bin_path(prefix), 17),
        "p.bin: truncated: 17 bytes, but the index says 18",
    ),
    "long bin": (lambda prefix: indexed.bin_path(prefix).write_bytes(bytes(19)), "p.bin: too long"),
    "cut idx": (
        lambda prefix: _cut(indexed.idx_path(prefix), 99),
        "p.idx: truncated: 99 bytes, but its header says 102",
    ),
    "cut header": (
        lambda prefix: _cut(indexed.idx_path(prefix), 33),
        "p.idx: truncated: 33 bytes, but the header alone",
    ),
    "empty idx": (lambda prefix: _cut(indexed.idx_path(prefix), 0), "p.idx: truncated: 0 bytes"),
    "magic": (
        lambda prefix: indexed.idx_path(prefix).write_bytes(bytes(200)),
        "p.idx: not a Megatron index",
    ),
    "swapped": (_swap, "p.idx: this is the .bin file: the two files are swapped"),
    "version": (lambda prefix: write_pair(prefix, version=2), "p.idx: version 2"),
    "dtype": (lambda prefix: write_pair(prefix, code=9), "p.idx: unknown dtype code 9"),
    "float": (
        lambda prefix: write_pair(prefix, code=7, itemsize=4),
        "p.idx: contains float32 values, but token ids must be integers",
    ),
    "no document": (lambda prefix: write_pair(prefix, []), "p.idx: contains no documents"),
    "no token": (lambda prefix: write_pair(prefix, [0, 0]), "p.bin: contains no tokens"),
    "negative": (lambda prefix: write_pair(prefix, [3, -1]), "p.idx: damaged: the last sequence"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_each_kind_of_damage_has_its_own_message(tmp_path: Path, name: str) -> None:
    prefix = tmp_path / "p"
    write_pair(prefix)
    damage, message = BREAKS[name]
    damage(prefix)
    (problem,) = indexed.problems(prefix)
    assert message in problem


@pytest.mark.parametrize("bound", [-1, 0, 4, 1 << 40])
def test_the_thorough_check_finds_bounds_that_fall(tmp_path: Path, bound: int) -> None:
    write_pair(tmp_path / "p")
    content = bytearray(indexed.idx_path(tmp_path / "p").read_bytes())
    struct.pack_into("<q", content, len(content) - 2 * 8, bound)  # the last but one; the others are 0, 1, 3
    indexed.idx_path(tmp_path / "p").write_bytes(content)
    (problem,) = indexed.problems(tmp_path / "p", thorough=True)
    assert f"damaged: document {1 if bound < 1 else 2} ends before it starts" in problem


def test_falling_bounds_are_found_between_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexed, "_CHUNK", 2)
    write_pair(tmp_path / "p", [1] * 7)
    assert indexed.problems(tmp_path / "p", thorough=True) == []
    content = bytearray(indexed.idx_path(tmp_path / "p").read_bytes())
    struct.pack_into("<q", content, len(content) - 4 * 8, 2)  # 0 1 2 3 [2] 5 6 7
    indexed.idx_path(tmp_path / "p").write_bytes(content)
    assert "document 3 ends before" in indexed.problems(tmp_path / "p", thorough=True)[0]


def test_two_missing_files_are_reported_together(tmp_path: Path) -> None:
    assert len(indexed.problems(tmp_path / "p")) == 2


@given(st.lists(st.integers(0, 50), min_size=1, max_size=20).filter(any), st.data())
def test_the_thorough_check_finds_any_changed_byte_of_the_index_arrays(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], data: st.DataObject
) -> None:
    prefix = tmp_path_factory.getbasetemp() / "any"
    write_pair(prefix, lengths)
    content = bytearray(indexed.idx_path(prefix).read_bytes())
    position = data.draw(st.integers(34, 34 + 12 * len(lengths) - 1))
    content[position] ^= data.draw(st.integers(1, 255))
    indexed.idx_path(prefix).write_bytes(content)
    assert len(indexed.problems(prefix, thorough=True)) == 1


def test_the_check_imports_only_the_standard_library() -> None:
    code = (
        "import sys, indexed; print({name.split('.')[0] for name in sys.modules} - sys.stdlib_module_names)"
    )
    folder = Path(indexed.__file__).parent
    isolated = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    assert eval(isolated.stdout) == {"indexed", "__main__"}
