"""Rules of instruction tuning: between its arguments, and for pairs of conversations."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flagscale.checks import sft
from flagscale.checks.blend import content
from flagscale.checks.data import data_violations, input_violations, inputs_of
from flagscale.checks.loss_masks import separate_remarks
from flagscale.checks.mask_files import SEPARATE, mask_prefix
from flagscale.checks.resume import CONTENT, Saved, resume_notices
from flagscale.config.catalog import Catalog
from flagscale.errors import Violation
from flagscale.values import Job
from flagscale_testing.conversations import write_conversations
from flagscale_testing.pairs import write_pair
from megatron.flagscale.sft.arguments import add_arguments
from tests.unit.rules import Example

RIGHT = {"calculate_per_token_loss": True, "transformer_impl": "torch"}
WRONG: list[tuple[dict[str, Any], str, str]] = [
    *(({name: 1 if name == "mtp_num_layers" else True}, name, "cannot be used with") for name in sft.REFUSED),
    ({"calculate_per_token_loss": False}, "calculate_per_token_loss", "is required: samples differ in"),
    ({"transformer_impl": "transformer_engine"}, "transformer_impl", "use `torch`, whose attention"),
    ({"dataloader_type": "cyclic"}, "dataloader_type", "samples come in another order in each epoch anyway"),
    ({"dataloader_type": "external"}, "dataloader_type", "cannot be used with"),
    (
        {"num_experts": 4, "moe_router_load_balancing_type": "sinkhorn"},
        "moe_router_load_balancing_type",
        "it counts padding",
    ),
    ({"allow_ambiguous_pad_tokens": True}, "allow_ambiguous_pad_tokens", "padding is not found by its id"),
    ({"no_packing": True, "reset_position_ids": True}, "reset_position_ids", "has no effect with"),
    ({"no_packing": True, "reset_attention_mask": True}, "reset_attention_mask", "has no effect with"),
]
"""Changes that break one rule, the argument to blame, and a part of the message."""
JOB = {
    "tokenizer_type": "NullTokenizer",
    "vocab_size": 100,
    "seq_length": 8,
    "train_iters": 2,
    "global_batch_size": 2,
    "eval_iters": 0,
    "no_packing": False,
}
SOUND = [([5] * 6, [0] * 3 + [1] * 3), ([5] * 4, [0, 0, 1, 1]), ([5] * 4, [0, 0, 1, 1])]


def values_of(catalog: Catalog) -> dict[str, Any]:
    """Return the defaults of the engine and of the program, and the arguments that it requires."""
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    defaults = {option.dest: option.default for option in catalog.options.values()}
    return {**defaults, **vars(parser.parse_args([])), **RIGHT}


@pytest.fixture
def values(catalog: Catalog) -> dict[str, Any]:
    return values_of(catalog)


def test_the_required_arguments_break_no_rule(values: dict[str, Any]) -> None:
    assert sft.is_instruction_tuning(values)
    assert list(sft.sft_violations(values)) == []
    packed = {"reset_position_ids": True, "reset_attention_mask": True}
    assert list(sft.sft_violations(values | packed)) == []


@pytest.mark.parametrize(("changes", "name", "says"), WRONG, ids=lambda one: str(one)[:60])
def test_a_broken_rule_is_reported_once(
    values: dict[str, Any], changes: dict[str, Any], name: str, says: str
) -> None:
    (violation,) = sft.sft_violations({**values, **changes})
    assert violation[0] == name
    assert says in violation[1]


def test_values_without_effect_are_the_defaults(values: dict[str, Any]) -> None:
    for name, (off, _) in sft.REFUSED.items():
        assert values[name] == off


def found(changes: dict[str, Any], folder: Path) -> list[Violation]:
    """Return what is wrong with pairs in a folder, as a host finds it by the inputs of a job."""
    values = {**JOB, "train_data_path": ["train_text_document"], **changes}
    here = list(data_violations(values, folder, has_own_data=True))
    assert list(input_violations(inputs_of(values, has_own_data=True), folder)) == here
    return here


def write_masks(folder: Path, lengths: list[int], masks: bytes) -> None:
    write_pair(folder / "train_loss_mask_document", lengths, masks, code=1, itemsize=1)


def without_masks(folder: Path) -> None:
    for path in folder.glob("train_loss_mask_document.*"):
        path.unlink()


BROKEN: list[tuple[Callable[[Path], object], str]] = [
    (without_masks, "no such files, which say what of"),
    (lambda folder: (folder / "train_loss_mask_document.bin").unlink(), "mask_document.bin: no such file"),
    (lambda folder: write_masks(folder, [6, 4], bytes([1] * 10)), "has 2 documents, but"),
    (lambda folder: write_masks(folder, [6, 5, 3], bytes([1] * 14)), "document 1 has 5 masks for 4 tokens"),
    (lambda folder: write_masks(folder, [6, 4, 4], bytes(14)), "no token is learnt: every mask is 0"),
]
"""What breaks a sound pair, and a part of the message."""


@pytest.mark.parametrize(("spoil", "says"), BROKEN, ids=[says[:30] for _, says in BROKEN])
def test_masks_that_do_not_fit(tmp_path: Path, spoil: Callable[[Path], object], says: str) -> None:
    write_conversations(tmp_path / "train", SOUND)
    assert found({}, tmp_path) == []
    spoil(tmp_path)
    (violation,) = found({}, tmp_path)
    assert violation[0] == "train_data_path"
    assert says in violation[1]


def test_conversations_longer_than_a_sample(tmp_path: Path) -> None:
    write_conversations(tmp_path / "train", SOUND)
    (violation,) = found({"seq_length": 5}, tmp_path)
    assert "conversations longer than seq_length 5: 1 of 3; the longest has 6 tokens" in violation[1]
    assert "set `seq_length: 6`, or leave them out (`tools/datasets/chat.py --longest 5`)" in violation[1]


def test_only_pairs_of_conversations_in_files(tmp_path: Path, write_data: Callable[..., str]) -> None:
    write_data(tmp_path / "plain")
    (violation,) = found({"train_data_path": ["plain"]}, tmp_path)
    assert "its name does not end with `_text_document`" in violation[1]
    (violation,) = found({"train_data_path": ["s3://bucket/train_text_document"]}, tmp_path)
    assert "loss masks are read from files only" in violation[1]
    (violation,) = found({"train_data_path": None}, tmp_path)
    assert violation[1].startswith("no data: give `data_path`")


@pytest.mark.parametrize(("no_packing", "samples"), [(False, 2), (True, 3)])
def test_samples_are_counted_as_they_are_packed(tmp_path: Path, no_packing: bool, samples: int) -> None:
    write_conversations(tmp_path / "train", SOUND)
    twice = {"train_data_path": ["train_text_document"] * 2, "no_packing": no_packing}
    assert found(twice | {"global_batch_size": samples}, tmp_path) == []
    (violation,) = found(twice | {"global_batch_size": samples + 1}, tmp_path)
    assert f"the train split has {2 * samples} samples of 8 tokens, but the job reads" in violation[1]


def remarks_of(values: dict[str, Any], folder: Path) -> list[Violation]:
    own = sft.conversation_remarks if sft.is_instruction_tuning(values) else separate_remarks
    return list(own(values, folder))


def test_the_samples_of_the_training_are_announced(tmp_path: Path) -> None:
    prefix = write_conversations(tmp_path / "train", SOUND)
    (remark,) = remarks_of({**JOB, "train_data_path": ["train_text_document"]}, tmp_path)
    what = "3 conversations make 2 samples of 8 tokens, 87.5% full; steps in one pass: 1"
    assert remark == ("train_data_path", f"{prefix}: {what}")
    split = {**JOB, "data_path": ["1", "train_text_document"], "split": "67,33,0", "no_packing": True}
    (remark,) = remarks_of(split, tmp_path)
    assert "2 conversations make 2 samples of 8 tokens, 62.5% full" in remark[1]
    (remark,) = remarks_of({**split, "split": "34,66,0"}, tmp_path)
    assert "1 conversation makes 1 sample of 8 tokens" in remark[1]
    assert list(remarks_of({**JOB, "train_data_path": ["absent_text_document"]}, tmp_path)) == []
    assert list(remarks_of({**JOB, "train_data_path": [prefix], "seq_length": 5}, tmp_path)) == []


PLAIN = {name: value for name, value in JOB.items() if name != "no_packing"}


@pytest.mark.parametrize(("spoil", "says"), BROKEN[1:], ids=[says[:30] for _, says in BROKEN[1:]])
def test_masks_that_a_pretraining_reads(tmp_path: Path, spoil: Callable[[Path], object], says: str) -> None:
    write_conversations(tmp_path / "train", SOUND)
    spoil(tmp_path)
    values = {**PLAIN, "train_data_path": ["train_text_document"]}
    assert list(data_violations(values, tmp_path)) == []
    (violation,) = data_violations(values | {SEPARATE: True}, tmp_path)
    assert says in violation[1]
    assert list(input_violations(inputs_of(values | {SEPARATE: True}), tmp_path)) == [violation]


def test_a_pretraining_names_data_without_masks(tmp_path: Path, write_data: Callable[..., str]) -> None:
    write_data(tmp_path / "plain")
    write_data(tmp_path / "train_text_document")
    names = ["plain", "train_text_document"]
    values = {**PLAIN, "train_data_path": names, SEPARATE: True}
    remarks = [what for _, what in remarks_of(values, tmp_path)]
    assert "plain has no loss masks (its name does not end with" in remarks[0]
    assert "train_loss_mask_document does not exist): all of its tokens are learnt" in remarks[1]
    assert list(remarks_of(values | {SEPARATE: False}, tmp_path)) == []


def test_other_masks_are_other_data(tmp_path: Path) -> None:
    write_conversations(tmp_path / "train", SOUND)
    named = {"train_data_path": ["train_text_document"]}
    plain, separate = {**PLAIN, **named}, {**PLAIN, **named, SEPARATE: True}
    readers = ({**JOB, **named}, separate, plain)
    before = [content(values, tmp_path) for values in readers]
    write_masks(tmp_path, [6, 4, 4], bytes([0, 1] * 7))
    after = [content(values, tmp_path) for values in readers]
    assert [one != other for one, other in zip(before, after, strict=True)] == [True, True, False]
    without_masks(tmp_path)
    assert content(separate, tmp_path) == content(plain, tmp_path) == after[2]
    saved = Saved("the checkpoint", {**JOB, **named, CONTENT: before[0]})
    ((argument, what),) = resume_notices(saved, {**JOB, **named, CONTENT: after[0]})
    assert argument == "train_data_path"
    assert "was trained with other data" in what


def test_masks_have_the_name_of_their_text() -> None:
    assert mask_prefix(Path("a.b/x.y_text_document")) == Path("a.b/x.y_loss_mask_document")
    assert mask_prefix(Path("text_document_2")) is None


def test_the_launcher_knows_the_program(tmp_path: Path, build: Callable[..., Job]) -> None:
    prefix = write_conversations(tmp_path / "train", SOUND)
    data = {"mock_data": None, "train_data_path": [prefix], **RIGHT}
    job = build(data, entrypoint=sft.PROGRAM)
    assert "--calculate-per-token-loss" in job.role.argv
    assert not job.has_own_model
    assert job.inputs["no_packing"] is False
    wrong = {"mock_data": True, "fim_data": True, "sft": True, **RIGHT}
    says = [problem.what for problem in Example(wrong, "", entrypoint=sft.PROGRAM).report()]
    assert len(says) == 3
    (problem,) = Example({"sft": True}, "").report()
    assert f"`experiment.task.entrypoint: {sft.PROGRAM}`" in problem.what
