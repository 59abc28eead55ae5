"""The user's file of chips: entries, other names, and every mistake at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flagscale.errors import UserError
from flagscale.estimates.own_chips import read_chips
from flagscale.planner.chips import chip_of, chip_table

ENTRY = {
    "bf16_tflops_dense": 100,
    "memory_gb": 32,
    "hbm_gb_s": 900,
    "intra_node": {"gb_s": 64, "world": 4},
    "inter_node": {"gbit_s_per_card": 100, "protocol": "RoCE"},
    "source": "measured here",
}


def written(folder: Path, tree: object, name: str = "chips.json") -> Path:
    path = folder / name
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree))
    return path


def messages(path: Path) -> str:
    with pytest.raises(UserError) as raised:
        read_chips(path)
    return "\n".join(map(str, raised.value.problems))


def test_entries_and_other_names_are_read(tmp_path: Path) -> None:
    tree = {"Mine": ENTRY, "nvidia": "H100", "A100": "A100-80", "same": "Mine"}
    found = read_chips(written(tmp_path, tree))
    assert found == tree
    chip = chip_of("Mine", ENTRY)
    assert (chip.memory_bytes, chip.inside.bytes_s, chip.outside.bytes_s) == (32 * 2**30, 32e9, 12.5e9)


def test_what_a_device_reports_comes_before_its_data_sheet() -> None:
    reported = {**ENTRY, "usable_memory": {"gib": 31.7, "source": "here"}}
    assert chip_of("Mine", reported).memory_bytes == 31.7 * 2**30
    measured = {**reported, "measured": {"memory_gib": 30}}
    assert chip_of("Mine", measured).memory_bytes == 30 * 2**30
    assert chip_of("Mine", {**ENTRY, "measured": {"memory_gib": 0}}).memory_bytes == 32 * 2**30


def test_no_device_reports_more_than_its_data_sheet_says() -> None:
    reported = {name: one["usable_memory"] for name, one in chip_table().items() if "usable_memory" in one}
    for name, one in reported.items():
        assert 0.9 * chip_table()[name]["memory_gb"] < one["gib"] <= chip_table()[name]["memory_gb"]
        assert one["source"].startswith("https://")
    assert chip_of("H100", chip_table()["H100"]).memory_bytes < 80 * 2**30
    assert 178 <= chip_of("B200", chip_table()["B200"]).memory_bytes / 2**30 <= 180


def test_yaml_and_the_form_of_our_own_table_are_read_too(tmp_path: Path) -> None:
    text = "chips:\n  Mine: {bf16_tflops_dense: 100.5, memory_gb: 32}\n  nvidia: Mine\n"
    assert [*read_chips(written(tmp_path, text, "chips.yaml"))] == ["Mine", "nvidia"]
    assert read_chips(written(tmp_path, {"about": "x", "chips": {"Mine": ENTRY}})) == {"Mine": ENTRY}


def test_every_entry_of_our_table_is_in_the_form_that_users_may_write(tmp_path: Path) -> None:
    assert read_chips(written(tmp_path, {**chip_table()})) == chip_table()


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({**ENTRY, "hbm_gbs": 3}, "unknown figure `hbm_gbs`\n    did you mean `hbm_gb_s`?"),
        ({**ENTRY, "memory_gb": None}, "`memory_gb` is required"),
        ({**ENTRY, "memory_gb": "80"}, "`memory_gb` must be a number, not '80'"),
        ({**ENTRY, "bf16_tflops_dense": -1}, "`bf16_tflops_dense` must be a number"),
        ({**ENTRY, "bf16_tflops_dense": True}, "must be a number, not True"),
        ({**ENTRY, "intra_node": 600}, "`intra_node` must be a group of gb_s, world"),
        ({**ENTRY, "intra_node": {"gb_s": 64, "world": [4, 8]}}, "`intra_node.world` must be a whole number"),
        (
            {**ENTRY, "intra_node": {"gb_s": 64, "world": 0.5}},
            "must be a whole number of at least 1, not 0.5",
        ),
        ({**ENTRY, "intra_node": {"gb_s": 64}}, "`intra_node.world` is required"),
        ({**ENTRY, "inter_node": {"gbit_s": 1}}, "unknown figure `inter_node.gbit_s`"),
        ({**ENTRY, "measured": 3}, "`measured` must be a group"),
        ({**ENTRY, "measured": {"memory_gib": -4}}, "`measured.memory_gib` must be a number, not -4"),
        ({**ENTRY, "measured": {"gem": {}}}, "unknown figure `measured.gem`\n    did you mean `gemm`?"),
        (
            {**ENTRY, "measured": {"gemm": {"bfloat16": [[1, 2]]}}},
            "Mine: `measured.gemm.bfloat16[0]` of chip",
        ),
        ({**ENTRY, "usable_memory": {"gib": "79"}}, "`usable_memory.gib` must be a number, not '79'"),
        ([], "an entry is a group of figures"),
        ("H10", "no entry is called `H10`\n    did you mean `H100`?"),
        ("other", "no entry is called `other`"),
    ],
)
def test_a_wrong_entry(tmp_path: Path, entry: object, says: str) -> None:
    tree = {"Mine": entry, "other": "H100"} if entry == "other" else {"Mine": entry}
    assert says in messages(written(tmp_path, tree))


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    tree = {"A": {"memory_gb": 0}, "B": {**ENTRY, "hbm": 1, "fp8": 2}, "C": 3}
    assert len(messages(written(tmp_path, tree)).split("chips.json")) == 5


@pytest.mark.parametrize("text", ["", "[1, 2]", "chips: 3", "{", "chips: {}"])
def test_a_file_of_another_form(tmp_path: Path, text: str) -> None:
    assert "chips.yaml" in messages(written(tmp_path, text, "chips.yaml"))


def test_a_missing_file(tmp_path: Path) -> None:
    assert "cannot be read" in messages(tmp_path / "nowhere.json")
