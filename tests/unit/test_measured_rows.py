"""Published measurements are read as jobs for the planner, and what cannot be read has a reason."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.measured_rows import GIB, Row, read_rows, row_of
from flagscale.errors import UserError
from flagscale.planner.chips import chip_table, find_chip
from flagscale.planner.schedule import warm_ups
from flagscale.planner.training import Training

DATA = Path(__file__).parents[2] / "benchmarks" / "measured.jsonl"
LINES = {json.loads(line)["id"]: line for line in DATA.read_text("utf-8").splitlines()}


def read(name: str, **changes: Any) -> Row:
    """Return a row of the file after changes: `model__layers=4` sets one key, None removes it."""
    given = copy.deepcopy(json.loads(LINES[name]))
    for path, value in changes.items():
        *sections, last = path.split("__")
        inside = given
        for section in sections:
            inside = inside[section]
        if value is None:
            inside.pop(last, None)
        else:
            inside[last] = value
    return row_of(json.dumps(given), "rows.jsonl:7")


def job(name: str) -> Training:
    row = read(name)
    assert row.reason == ""
    assert len(row.copies) == 1
    return row.copies[0]


def test_every_row_is_a_job_or_has_a_reason() -> None:
    rows = read_rows(DATA)
    assert len(rows) == len(LINES) > 800
    assert not [row for row in rows if row.is_wrong]
    assert all(bool(row.copies) != bool(row.reason) for row in rows)
    assert all(row.measured for row in rows if row.copies)
    assert sum(bool(row.copies) for row in rows) > 550


def test_a_row_has_the_shape_and_the_degrees_of_its_keys() -> None:
    one = job("simumax-0000")
    assert (one.model.layers, one.model.hidden, one.model.groups, one.model.ffn) == (12, 8192, 8, 28672)
    assert (one.model.gated, one.model.tied, one.model.norm_bias, one.model.dropout) == (
        True,
        False,
        False,
        False,
    )
    assert (one.layout.meshes[0].pp, one.layout.meshes[0].dp, one.micro_batches) == (2, 4, 4)
    assert (one.numerics.compute, one.numerics.distributed, one.fused_loss) == ("bfloat16", True, True)
    row = read("simumax-0000")
    assert row.measured == {"allocated": 66.55 * GIB, "reserved": 70.88 * GIB, "time": 0.843}
    assert row.predictions is not None
    assert row.predictions["simumax_1.2"]["allocated"] == 66.44 * GIB


def test_a_complete_command_counts_more_than_the_keys() -> None:
    row = read("mlm-1384", model__layers=99)
    (one,) = row.copies
    assert row.is_last_stage
    assert (row.quality, row.kind) == ("A", "MoE")
    assert (one.model.experts, one.layout.meshes[0].ep, one.blocks[0].expert_tp) == (32, 4, 1)
    assert one.padded_vocabulary == 51712  # 50257 tokens, padded to 2 x 3232
    assert one.recompute.modules == ("layernorm", "mla_up_proj", "mlp", "moe_act")


def test_keys_are_read_as_their_scripts_use_them() -> None:
    # SimuMax passes --qk-layernorm for latent attention, and --no-overlap-p2p-communication for no job.
    assert job("simumax-0004").model.qk_norm
    assert not job("simumax-0000").model.qk_norm
    interleaved = read("simumax-0000", parallel__vpp=2)
    assert (interleaved.reason, interleaved.kind) == ("", "VPP")
    for given in ("selective", "SELECTIVE", {"granularity": "selective"}):
        assert read("simumax-0000", recompute=given).copies[0].recompute.modules == ("core_attn",)
    empty = read("simumax-0000", recompute={"granularity": "selective", "modules": []})
    assert empty.copies[0].recompute.modules == ()


def test_recipes_say_what_their_functions_set() -> None:
    whole, parts = job("mbridge-0093"), job("mbridge-0261")
    assert (whole.captured, whole.overlap_experts) == (("full_iteration",), True)
    assert (parts.captured, parts.overlap_experts) == (("attn", "moe_router", "moe_preprocess"), False)
    assert job("mbridge-0243").captured == ()  # `none` and a scope


def test_a_row_that_does_not_fit_its_chips_is_not_what_it_says() -> None:
    assert read("mbridge-0209").reason == "does not fit with no recompute: it needs 406 GiB of 276"
    assert read("mbridge-0209", recompute="full").reason == ""
    assert read("mbridge-0209", hardware__gpu="H100").reason.endswith("of 79")


def test_vtrain_does_not_pad_its_tokens() -> None:
    assert job("vtrain-0922").padded_vocabulary == 50257
    assert job("vtrain-0698").padded_vocabulary == 50256  # tp4


def test_layers_that_do_not_divide_are_cut_as_the_engine_can() -> None:
    deepseek = job("mbridge-0044")
    assert [stage.chunks for stage in deepseek.layout.stages] == [(4, 4, 4, 4)] + [(4, 4, 4, 3)] * 3
    assert deepseek.model.prediction_heads == 1
    llama = job("mlperf-1571")  # 126 layers in 8 x 8 chunks: embedding and loss count as layers
    assert [stage.layers for stage in llama.layout.stages] == [15, *[16] * 6, 15]


def test_stages_of_sailor_and_amp_have_their_layers_and_chips() -> None:
    neo = job("sailor-0933")  # 7, 9, 9, 9 with embedding and head
    assert [stage.layers for stage in neo.layout.stages] == [6, 9, 9, 8]
    assert (neo.numerics.compute, neo.implementation, neo.blocks[0].per_node) == ("float32", "local", 4)
    amp = job("amp-1483")
    assert [stage.layers for stage in amp.layout.stages] == [7, 6, 6, 5]
    assert amp.blocks[0].chip.outside.bytes_s == 50e9 / 8 / 4


def test_copies_with_different_chips_are_jobs_of_their_own() -> None:
    sailor = read("sailor-0964")
    assert sailor.kind == "mixed"
    chips = [[block.chip.name for block in one.blocks] for one in sailor.copies]
    assert chips == [["RTX-3090", "Titan-RTX"], ["RTX-2080"]]
    assert all(one.layout.world_size == 32 for one in sailor.copies)
    # DeepSpeed's pipeline keeps no more micro-batches between unequal chips.
    assert {warm_ups(one.layout) for one in sailor.copies} == {(1, 0)}
    amp = read("amp-1528")  # one host per stage, the last one with T4
    assert [block.chip.name for block in amp.copies[0].blocks] == ["V100-16", "T4"]
    assert [mesh.pp for mesh in amp.copies[0].layout.meshes] == [3, 1]
    assert [block.chip.name for block in read("amp-1548").copies[0].blocks] == ["V100-16"]


def test_copies_whose_degrees_do_not_match_the_devices_have_a_reason() -> None:
    row = read("amp-1528", parallel__tp=4)
    assert (row.reason, row.is_wrong) == ("the degrees need 64 devices, not 16", False)


def test_memory_is_not_scored_if_what_decides_it_is_unknown() -> None:
    assert set(read("mbridge-0047").measured) == {"time"}
    assert set(read("simumax-0000", recompute="unknown").measured) == {"time"}
    assert read("simumax-0000", recompute="unknown").assumed == ("no recompute",)
    for key, what in (("gated", "an MLP without a gate"), ("tied", "one matrix for embedding and output")):
        row = read("simumax-0000", **{f"model__{key}": None})
        assert (row.assumed, set(row.measured)) == ((what,), {"time"})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model__layers": None}, "not published: model.layers"),
        ({"train__gbs": None, "train__num_microbatches": None}, "not published: train.gbs"),
        ({"hardware__count": None}, "not published: hardware.count"),
        ({"parallel__fsdp": 8}, "sharded data parallel (FSDP)"),
        ({"model__family": "hybrid-mamba"}, "a hybrid model (state-space and attention layers)"),
        ({"train__kind": "lora"}, "low-rank adapters (LoRA)"),
        ({"quality": "C"}, "quality C: doubtful or incomplete"),
        ({"model__family": "t5"}, "a model with an encoder: t5"),
        ({"model__attention": "linear"}, "attention of a kind that the planner does not know: linear"),
        ({"precision__compute": "int8"}, "a precision that the engine does not have: int8"),
        (
            {"recompute": {"granularity": "partial"}},
            "recompute of a kind that the engine does not have: partial",
        ),
        (
            {"recompute": {"granularity": "selective", "modules": ["core"]}},
            "recompute of a module that the engine does not have: core",
        ),
        (
            {"recompute": {"granularity": "full", "method": "all"}},
            "recompute by a method that the engine does not have: all",
        ),
        ({"recompute": "selective-op"}, "recompute of a kind that the engine does not have: selective-op"),
        ({"hardware__gpu": "B2000"}, "unknown chip `B2000`"),
        ({"train__gbs": 18}, "a batch of 18 is not a multiple of 4, one micro-batch of all copies"),
        ({"measured": {}}, "not published: a time, or a memory that nothing unknown decides"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_a_row_that_cannot_be_estimated_has_a_reason(changes: dict[str, Any], reason: str) -> None:
    row = read("simumax-0000", **changes)
    assert (row.reason, row.is_wrong, row.copies) == (reason, False, ())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"parallel__tp": "two"}, "parallel.tp must be a whole number of at least 1, not 'two'"),
        ({"parallel__pp": 0}, "parallel.pp must be a whole number of at least 1, not 0"),
        ({"model": []}, "model must be an object, not []"),
        ({"measured__iteration_s": -1}, "measured.iteration_s must be a positive number, not -1"),
        ({"parallel__sp": "yes"}, "parallel.sp must be true or false, not 'yes'"),
        (
            {"flags__moe_capacity_factor": "4"},
            "flags.moe_capacity_factor must be a positive number, not '4'",
        ),
        ({"flags__distributed_optimizer": 1}, "flags.distributed_optimizer must be true or false, not 1"),
        ({"parallel__layers_per_stage": [1, 2]}, "the stages have 3 layers, but the model 12"),
    ],
    ids=lambda given: next(iter(given)) if isinstance(given, dict) else "",
)
def test_a_row_that_is_wrong_says_which_key(changes: dict[str, Any], reason: str) -> None:
    row = read("simumax-0000", **changes)
    assert (row.reason, row.is_wrong, row.place) == (reason, True, "rows.jsonl:7")


@pytest.mark.parametrize("line", ["{", "[1]", "null", '"row"', "{}", '{"model": null}', "NaN", "3"])
def test_any_line_is_a_row_with_a_reason(line: str) -> None:
    row = row_of(line, "rows.jsonl:1")
    assert row.reason
    assert not row.copies


def test_files_of_other_forms(tmp_path: Path) -> None:
    first, second = LINES["simumax-0000"], LINES["amp-1483"]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + f"{first}\r\n\r\n{second}\r\n".encode())
    assert [row.id for row in read_rows(path) if row.copies] == ["simumax-0000", "amp-1483"]
    path.write_text(f"{first}\n{second}\n{first}\n")
    assert [row.reason for row in read_rows(path)] == ["", "", "the same as line 1"]
    for text, what in (
        ("\n \n", "holds no measurements"),
        (f"[\n{first},\n{second}\n]", "one object per line"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=what):
            read_rows(path)


def test_null_is_a_key_that_was_not_published() -> None:
    given = json.loads(LINES["simumax-0000"])
    for section in given:
        if section in ("model", "hardware", "parallel", "train"):
            row = row_of(json.dumps({**given, section: None}), "")
            assert row.reason.startswith("not published: ")
            assert not row.is_wrong


def test_added_chips_have_a_source() -> None:
    for name in ("GH-96", "H100-96-500W", "A800-80", "V100-16", "RTX-3090", "RTX-2080", "Titan-RTX"):
        assert name in chip_table()
        assert find_chip(name).source
        assert find_chip(name).memory_bytes > 0
