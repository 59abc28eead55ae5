"""The range of token ids in a pair of any integer type, read in chunks."""

from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagscale_testing.pairs import write_pair
from megatron.flagscale import id_range as module
from megatron.flagscale.id_range import first_sequence_outside, id_range

CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "uint16": 8}


@pytest.mark.parametrize("dtype", CODES)
@given(data=st.data())
def test_the_range_of_any_type(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, data: st.DataObject
) -> None:
    prefix, info = tmp_path_factory.getbasetemp() / dtype, numpy.iinfo(dtype)
    values = data.draw(st.lists(st.integers(int(info.min), int(info.max)), min_size=1, max_size=40))
    tokens = numpy.array(values, dtype=dtype)
    size = tokens.itemsize
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHUNK", 16)  # several chunks, the last one short
        write_pair(prefix, [1] * len(values), tokens.tobytes(), code=CODES[dtype], itemsize=size)
        assert id_range(prefix) == (min(values), max(values))
        limit = data.draw(st.integers(1, int(info.max)))
        wrong = [number for number, value in enumerate(values) if not 0 <= value < limit]
        assert first_sequence_outside(prefix, limit) == (wrong[0] if wrong else None)


def test_a_wrong_id_is_found_in_its_sequence(tmp_path: Path) -> None:
    tokens = numpy.array([1, 2, 3, 4, 5, 6, 700, 8, 9], dtype="uint16")
    write_pair(tmp_path / "p", [3, 0, 3, 0, 3], tokens.tobytes())
    assert first_sequence_outside(tmp_path / "p", 700) == 4
    assert first_sequence_outside(tmp_path / "p", 701) is None
    assert first_sequence_outside(tmp_path / "p", 1 << 20) is None
