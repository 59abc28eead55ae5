"""Logits processors in both of vLLM's interfaces: one class, one answer."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import _load_logitsprocs_by_fqcns
from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality
from vllm.v1.worker.gpu.sample.logits_processor.loader import _load_v2_logitsprocs_by_fqcns

from flagscale.checks import emu3_vocabulary as names

NAME = "vllm_flagscale.emu3.processor:GridProcessor"
MARKS = (names.END_OF_LINE, names.END_OF_FRAME, names.END_OF_IMAGE, names.END_OF_TEXT)
IDS = {mark: at for at, mark in enumerate(MARKS)} | {names.CODE.format(code): 6 + code for code in range(3)}
VOCABULARY = 12
ALL, CODES = [*range(VOCABULARY)], [6, 7, 8]
(FIRST,), (SECOND,) = _load_logitsprocs_by_fqcns([NAME]), _load_v2_logitsprocs_by_fqcns([NAME])


def config(model_type: str = "emu3") -> Any:
    hf = SimpleNamespace(
        model_type=model_type, vocabulary_map=IDS, vq_config=SimpleNamespace(codebook_size=3)
    )
    return SimpleNamespace(model_config=SimpleNamespace(hf_config=hf))


def params(grid: list[int] | None) -> SamplingParams:
    return SamplingParams(extra_args={"image_grid": grid} if grid else None)


def allowed(logits: torch.Tensor) -> list[list[int]]:
    """Return the ids that each row still allows."""
    return [[at for at, one in enumerate(row) if one != float("-inf")] for row in logits.tolist()]


def with_first() -> list[list[list[int]]]:
    """Rows: a picture of 1 x 2 codes, an ordinary request, and a picture with one token (still computed)."""
    processor = FIRST(config(), torch.device("cpu"), False)
    outputs: list[list[int]] = [[], [5], [-1]]
    added = [
        (at, params(grid), [], output)
        for at, (grid, output) in enumerate(zip(([1, 2], None, [1, 1]), outputs, strict=True))
    ]
    steps = []
    processor.update_state(BatchUpdate(3, [], added, []))
    steps.append(allowed(processor.apply(torch.zeros(3, VOCABULARY))))
    outputs[0] += [6, 7, 0]
    outputs[2] += [-1, -1, -1]
    processor.update_state(BatchUpdate(3, [], [], [(0, 1, MoveDirectionality.SWAP)]))
    steps.append(allowed(processor.apply(torch.zeros(3, VOCABULARY))))
    processor.update_state(BatchUpdate(1, [2], [], [(1, 0, MoveDirectionality.UNIDIRECTIONAL)]))
    steps.append(allowed(processor.apply(torch.zeros(1, VOCABULARY))))
    return steps


def with_second() -> list[list[list[int]]]:
    """The same, in slots 7, 4 and 2 with prompts of 10, 20 and 30 tokens."""
    prompts = np.zeros(8, dtype=int)
    prompts[[7, 4, 2]] = 10, 20, 30
    processor: Any = SECOND(config(), SimpleNamespace(prompt_len=SimpleNamespace(np=prompts)))
    asked = [processor.add_request(slot, params(g)) for slot, g in ((7, [1, 2]), (4, None), (2, [1, 1]))]
    assert asked == [True, False, True]

    def step(slots: list[int], lengths: list[int]) -> list[list[int]]:
        ctx = SimpleNamespace(idx_mapping_np=np.array(slots), seq_lens_upper_bound_np=np.array(lengths))
        return allowed(processor.apply(torch.zeros(len(slots), VOCABULARY), ctx))

    steps = [step([7, 4, 2], [10, 21, 31]), step([4, 7, 2], [22, 13, 34]), step([7], [13])]
    assert processor.add_request(7, params(None)) is False  # the slot's next request is an ordinary one
    assert step([7], [10]) == [[*range(VOCABULARY)]]
    return steps


def test_both_loaders_take_one_class() -> None:
    assert FIRST is SECOND


@pytest.mark.parametrize("interface", [with_first, with_second])
def test_rows_are_masked_by_their_grid_and_count(interface: Callable[[], list[list[list[int]]]]) -> None:
    begun, swapped, alone = interface()
    assert begun == [CODES, ALL, [0]]  # a code, anything, the end of the only line
    assert swapped == [ALL, [1], [3]]  # the end of the frame, the end of the text
    assert alone == [[1]]


def test_another_model_is_refused_at_the_start() -> None:
    with pytest.raises(ValueError, match="pictures need an Emu3 model; this one is `llama`"):
        FIRST(config("llama"), torch.device("cpu"), False)


def refused(**changes: Any) -> str:
    """Return why a request is refused; "" if it is not."""
    given = {"max_tokens": 6, "extra_args": {"image_grid": [1, 2]}} | changes
    try:
        FIRST.validate_params(SamplingParams(**given))
    except ValueError as error:
        return str(error)
    return ""


def test_requests_for_pictures_and_ordinary_ones_are_taken() -> None:
    assert refused() == refused(extra_args=None, max_tokens=99) == ""


@pytest.mark.parametrize("grid", [[0, 2], [1], "1x2", [1.0, 2], [True, 2], 3])
def test_a_wrong_grid_is_refused(grid: Any) -> None:
    why = refused(extra_args={"image_grid": grid})
    assert why.startswith("`image_grid` takes the height and the width of a picture in codes, not ")


def test_requests_that_cannot_become_a_picture_are_refused() -> None:
    short = refused(max_tokens=5)
    assert short.startswith("`max_tokens` must be 6 for a picture of 16x8 pixels, not 5; picture and prompt")
    assert refused(stop=["x"]) == "`stop` cannot be combined with a picture"
    assert refused(stop_token_ids=[7], allowed_token_ids=[7]).count("cannot be combined") == 2
