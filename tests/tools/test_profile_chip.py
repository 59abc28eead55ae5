"""A profile of this machine: what it writes, what it keeps, and how it continues. No speed is asserted."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from flagscale.errors import UserError
from flagscale.planner.chips import chip_of, chip_table
from flagscale.platforms import Platform, find
from tools import profile_chip
from tools.chip_file import (
    begun,
    known_parts,
    own_entry,
    put,
    read_entries,
    require_writable,
    summary,
    write_entry,
)

SOURCE = {"machine": "here", "torch": "2.13.0", "ranks": 2, "quick": False}
ROWS = [[64, 64, 64, 1e-5], [256, 256, 256, 2e-4]]

Tool = Callable[..., subprocess.CompletedProcess[str]]


def measured_entry(**source: Any) -> dict[str, Any]:
    entry = begun("own", None, {**SOURCE, **source})
    put(entry, "hbm_gb_s", 20.0)
    put(entry, "gemm/bfloat16", ROWS)
    put(entry, "collectives/send/2", [[1024, 1e-5]])
    return entry


def test_a_short_profile_is_a_chip_that_the_planner_reads(tool: Tool, tmp_path: Path) -> None:
    file = tmp_path / "chips.json"
    file.write_text(json.dumps({"chips": {"mine": {"memory_gb": 3, "note": "by hand"}, "alias": "H100"}}))
    only = [f"--only={part}" for part in ("launch_s", "grouped_gemm/float32", "collectives/all_to_all")]
    done = tool("profile_chip.py", file, "--name", "two words", "--quick", *only, "--platform", "cpu")
    assert done.returncode == 0, done.stderr
    assert "100 % after" in done.stderr
    entries = json.loads(file.read_text())["chips"]
    assert entries["mine"] == {"memory_gb": 3, "note": "by hand"}
    assert entries["alias"] == "H100"
    entry = entries["two words"]
    assert entry["measured"]["source"].keys() == {"machine", "torch", "ranks", "quick", "date", "device"}
    chip = chip_of("two words", entry)
    assert chip.per_node == 2
    assert chip.memory_bytes > 1e8
    assert chip.curves.grouped_s("float32", 4, 64, 256, 256)
    assert chip.curves.collective_s("all_to_all", 2, 5000)
    assert chip.curves.gemm_s("float32", 64, 64, 64) is None


@pytest.mark.slow
def test_a_repeated_command_continues(tool: Tool, tmp_path: Path) -> None:
    file = tmp_path / "chips.json"
    entry = measured_entry(machine=platform.node(), torch=version("torch"), ranks=1)
    write_entry(file, "own", entry)
    words = ["--name=own", "--ranks=1", "--platform=cpu", "--only=hbm_gb_s", "--only=gemm/bfloat16"]
    done = tool("profile_chip.py", file, *words, "--only=launch_s")
    assert done.returncode == 0, done.stderr
    assert "known already: 3 parts" in done.stdout
    added = read_entries(file)["own"]["measured"]
    assert added.pop("launch_s") > 0
    assert {key: added[key] for key in ("hbm_gb_s", "gemm", "collectives")} == {
        key: entry["measured"][key] for key in ("hbm_gb_s", "gemm", "collectives")
    }


def test_the_published_figures_of_a_known_chip_are_taken_over() -> None:
    entry = begun("Iluvatar-BI-V150", None, SOURCE)
    assert entry["bf16_tflops_dense"] == chip_table()["Iluvatar-BI-V150"]["bf16_tflops_dense"]
    # Its published measured figures stay until they are measured here.
    assert "allreduce_8gpu_bus_gb_s" in entry["measured"]
    assert "hbm_gb_s" not in entry["measured"]
    assert (
        chip_of("Iluvatar-BI-V150", entry).flop_s
        == chip_of("Iluvatar-BI-V150", chip_table()["Iluvatar-BI-V150"]).flop_s
    )


def test_parts_of_the_same_machine_and_software_are_known() -> None:
    parts = ["hbm_gb_s", "gemm/bfloat16", "collectives/send/2"]
    assert known_parts("own", measured_entry(), SOURCE) == parts
    assert known_parts("own", measured_entry(quick=True), {**SOURCE, "quick": True}) == parts
    # Thorough figures serve a quick command, not the other way round.
    assert known_parts("own", measured_entry(), {**SOURCE, "quick": True}) == parts
    assert known_parts("own", measured_entry(quick=True), SOURCE) == []
    assert known_parts("own", {"memory_gb": 3, "measured": {"source": "by hand"}}, SOURCE) == []


def test_what_was_measured_elsewhere_is_not_mixed_in() -> None:
    with pytest.raises(UserError) as raised:
        known_parts("own", measured_entry(), {**SOURCE, "machine": "there", "ranks": 8})
    message = str(raised.value)
    assert "chip `own` was measured otherwise: machine was here, is there, ranks was 2, is 8" in message
    assert "--name NAME" in message
    assert "--again" in message


def test_an_entry_that_only_names_another_chip_is_kept() -> None:
    with pytest.raises(UserError, match="`nvidia` is another name for a chip"):
        own_entry({"nvidia": "H100"}, "nvidia", "chips.json")


@pytest.mark.parametrize("text", ["{", "[]", '{"chips": []}', "chips: {}", '{"H100": 3}'])
def test_a_file_of_another_form_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    file = tmp_path / "chips.json"
    file.write_text(text)
    with pytest.raises(UserError) as raised:
        write_entry(file, "own", measured_entry())
    assert str(file) in str(raised.value)
    assert file.read_text() == text


def test_a_file_that_only_holds_entries_is_completed(tmp_path: Path) -> None:
    """`experiment.chips` reads it, too."""
    file = tmp_path / "chips.json"
    file.write_text('{"nvidia": "H100"}')
    write_entry(file, "own", measured_entry())
    assert read_entries(file) == {"nvidia": "H100", "own": measured_entry()}


def test_nothing_is_measured_for_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"chips\.json: cannot be written: "):
        require_writable(tmp_path / "file" / "chips.json")
    require_writable(tmp_path / "new" / "chips.json")
    assert [*tmp_path.glob("new/*")] == []


def test_a_file_is_written_so_that_a_person_can_read_it(weird_path: Path) -> None:
    file = weird_path / "new folder" / "chips.json"
    write_entry(file, "own", measured_entry())
    assert read_entries(file) == {"own": measured_entry()}
    assert "[64, 64, 64, 1e-05],\n" in file.read_text()


def test_entries_that_others_write_meanwhile_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "chips.json"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: write_entry(file, f"chip {number}", measured_entry()), range(12)))
    assert read_entries(file).keys() == {f"chip {number}" for number in range(12)}


def test_a_part_is_summed_up_by_its_rates() -> None:
    assert summary("gemm/fp8", ROWS) == "gemm/fp8: 2 sizes, 52.4G to 168G FLOP/s"
    assert summary("attention/float32", [[100, 2, 10, 1e-3, 9.0]]).endswith("1 size, 400M to 400M FLOP/s")
    assert summary("collectives/send/2", [[1000, 1e-3]]) == "collectives/send/2: 1 size, 1M to 1M B/s"
    assert summary("launch_s", 1e-6) == "launch_s: 1e-06"


def test_there_is_a_rank_for_each_device(monkeypatch: pytest.MonkeyPatch) -> None:
    eight = Platform("eight", count_devices=lambda environ: 8)
    assert profile_chip._ranks(None, eight) == 8
    assert profile_chip._ranks(2, eight) == 2
    with pytest.raises(UserError, match="9 ranks, but 8 devices"):
        profile_chip._ranks(9, eight)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0})
    assert profile_chip._ranks(None, find("cpu")) == 1
    assert profile_chip._ranks(3, find("cpu")) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "gem/fp8"], "there is no part 'gem/fp8'; did you mean `gemm`?"),
        (["--ranks", "0"], "'0' is not a positive whole number"),
        (["--platform", "nvidai"], "did you mean `nvidia`?"),
        (["--platform", "nvidia"], "no devices of `nvidia`"),
    ],
)
def test_a_mistake_is_named(tool: Tool, tmp_path: Path, words: list[str], message: str) -> None:
    done = tool("profile_chip.py", tmp_path / "chips.json", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "chips.json").exists()


@pytest.mark.slow
def test_the_ranks_output_is_printed_if_they_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(profile_chip, "_options", lambda *_: ["--no-such-option"])
    monkeypatch.setattr("sys.argv", ["profile_chip.py", str(tmp_path / "chips.json"), "--platform=cpu"])
    assert profile_chip.main() == 1
    errors = capsys.readouterr().err
    assert "unrecognized arguments: --no-such-option" in errors
    assert "error: the ranks ended with exit code" in errors
