"""`python -m benchmarks.estimate`: the table of errors from any file of measurements."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import engine_report, estimate
from benchmarks.error_intervals import error_table, intervals_table
from benchmarks.error_statistics import summary
from benchmarks.error_tables import about, by_class, by_source
from benchmarks.estimated_rows import DRAWS, PUBLISHED_PEAK, Estimator, draws, scored, with_published_peak
from benchmarks.measured_rows import read_rows
from flagscale.planner import intervals
from flagscale.planner.memory.stage_memory import StageMemory, Term, memory
from flagscale.planner.training import Training

LINES = {json.loads(line)["id"]: line for line in estimate.DATA.read_text("utf-8").splitlines()}
SIMUMAX = [line for name, line in LINES.items() if name.startswith("simumax")]

STAND_IN = Estimator(
    memory=lambda job: [
        StageMemory(stage.index, (Term("all", (10 + stage.index) * 2**30, "static"),))
        for stage in job.layout.stages
    ],
    seconds=lambda job, source, host: 0.1 * job.micro_batches,
)


def data(folder: Path, *lines: str) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def row(name: str, **sections: Any) -> str:
    given = json.loads(LINES[name])
    for section, values in sections.items():
        given[section] = {**given[section], **values} if isinstance(values, dict) else values
    return json.dumps(given)


def test_the_command_prints_every_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = data(tmp_path, *SIMUMAX[:8], LINES["amp-1483"], LINES["llmf-0336"])
    assert estimate.main(["--data", str(path), "--skip-report"]) == 0
    printed = capsys.readouterr().out
    for line in ("**Time of a step**", "**Allocated memory**", "| dense", "| MoE", "| simumax_1.2", "| amp"):
        assert line in printed
    assert "| sharded data parallel (FSDP) | 1 | llmf 1" in printed


def test_by_and_rows_choose_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = data(tmp_path, *SIMUMAX[:2])
    estimate.main(["--data", str(path), "--skip-report", "--by", "source"])
    by_source_only = capsys.readouterr().out
    assert "| source " in by_source_only
    assert "| class " not in by_source_only
    estimate.main(["--data", str(path), "--skip-report", "--by", "class"])
    assert "| source " not in capsys.readouterr().out
    estimate.main(["--data", str(path), "--skip-report", "--rows"])
    rows = capsys.readouterr().out
    assert rows.count("simumax-0000") == 3  # allocated, reserved, time
    assert "66.55 GiB" in rows
    assert "simumax_1.2 -1.7" in rows


def test_wrong_rows_are_reported_by_line_and_the_others_are_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = data(
        tmp_path,
        LINES["simumax-0000"],
        '{"id": ',
        row("simumax-0002", parallel={"tp": "four"}),
        row("simumax-0002", hardware={"gpu": "B2000"}),
        row("simumax-0002", model=None),
        LINES["simumax-0010"],
    )
    assert estimate.main(["--data", str(path), "--skip-report"]) == 2
    printed = capsys.readouterr()
    assert f"{path}:2: not JSON" in printed.err
    assert f"{path}:3: parallel.tp must be a whole number of at least 1, not 'four'" in printed.err
    assert printed.err.count(str(path)) == 2  # what is not known is no mistake
    assert "unknown chip `B2000`" in printed.out
    assert "not published: model." in printed.out
    assert "| dense " in printed.out


def test_a_file_without_a_usable_row_is_no_crash(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert estimate.main(["--data", str(tmp_path / "none.jsonl")]) == 2
    assert "cannot read the measurements: No such file" in capsys.readouterr().err
    assert estimate.main(["--data", str(data(tmp_path, "", LINES["llmf-0336"]))]) == 0
    assert "sharded data parallel" in capsys.readouterr().out
    assert estimate.main(["--data", str(tmp_path / "x"), "--write"]) == 2
    assert "not --data" in capsys.readouterr().err


def test_one_row_that_the_estimator_cannot_do_does_not_stop_the_others(tmp_path: Path) -> None:
    def seconds(job: Training, source: str, host: float) -> float:
        return 1 / abs(job.model.layers - 12)

    rows = read_rows(data(tmp_path, LINES["simumax-0000"], LINES["simumax-0026"]))
    found, excluded = scored(rows, Estimator(STAND_IN.memory, seconds))
    assert [one.row.id for one in found] == ["simumax-0026"]
    assert excluded[0].reason.startswith("the estimate failed: ZeroDivisionError")
    assert excluded[0].is_wrong


def test_memory_of_functional_tests_is_that_of_the_last_stage(tmp_path: Path) -> None:
    rows = read_rows(data(tmp_path, LINES["mlm-1384"], LINES["simumax-0000"]))
    found, _ = scored(rows, STAND_IN)
    assert [one.estimates["allocated"] / 2**30 for one in found] == [11, 11]
    assert found[1].error("time") == pytest.approx(0.4 / 0.843 - 1)
    assert found[1].error_of("simumax_1.2", "time") == pytest.approx(0.82876 / 0.843 - 1)


def test_copies_with_different_chips_count_by_the_slowest(tmp_path: Path) -> None:
    def seconds(job: Training, source: str, host: float) -> float:
        return 5.0 if job.blocks[0].chip.name == "RTX-2080" else 1.0

    (one,), _ = scored(read_rows(data(tmp_path, LINES["sailor-0964"])), Estimator(STAND_IN.memory, seconds))
    assert one.estimates["time"] == 5.0


def test_memory_on_deepspeed_counts_what_its_source_says(tmp_path: Path) -> None:
    rows = read_rows(data(tmp_path, LINES["sailor-0965"], LINES["sailor-0945"], LINES["simumax-0000"]))
    found, _ = scored(rows, Estimator(memory, STAND_IN.seconds))
    for one, outside in zip(found[:2], (3.0e9, 5.06e9), strict=True):
        (stage,) = memory(one.row.copies[0])
        (flat,) = [term.nbytes for term in stage.terms if term.name == "gradients"]
        assert one.estimates["device"] == stage.reserved + flat + outside
    assert "device" not in found[2].estimates


def test_a_calibration_is_scored_on_rows_that_it_has_not_seen(tmp_path: Path) -> None:
    times = [0.2, 0.4, 0.6, 0.8, 1.0, 12.0]  # the last one is no multiple of its estimate
    lines = [
        row("simumax-0002", measured={"iteration_s": time}, train={"gbs": 2 * (number + 1)})
        for number, time in enumerate(times)
    ]
    found, _ = scored(read_rows(data(tmp_path, *lines)), STAND_IN)
    assert all("time" in one.judged for one in found)
    errors = [one.calibrated["time"] for one in found]
    assert all(len(own) == 10 for own in errors)  # 20 choices of 3 rows of 6: half leave out a given row
    assert max(errors[5]) < -0.8  # its own time never helped
    assert min(abs(error) for error in errors[0]) < 0.01
    found, _ = scored(read_rows(data(tmp_path, *lines[:5])), STAND_IN)
    assert all(one.calibrated["time"] and "time" not in one.judged for one in found)


def test_a_source_that_measured_its_chip_is_shown_without_that_too(tmp_path: Path) -> None:
    def seconds(job: Training, source: str, host: float) -> float:
        return 0.9 if job.blocks[0].chip.measured.get("gemm_share_of_peak_median") else 0.7

    path = data(tmp_path, LINES["simumax-0000"], LINES["amp-1483"])
    estimator = Estimator(STAND_IN.memory, seconds)
    found = with_published_peak(scored(read_rows(path), estimator)[0], estimator)
    assert found[0].estimates["time"] == 0.9
    assert found[0].others[PUBLISHED_PEAK] == {"time": 0.7}
    assert PUBLISHED_PEAK not in found[1].others


def test_choices_of_rows_are_the_same_every_time() -> None:
    assert draws(3, "machine") == []
    assert len(draws(4, "machine")) == 4
    assert len({*draws(100, "machine")}) == DRAWS
    assert draws(100, "machine") == draws(100, "machine")


def test_figures_are_those_of_rows_not_of_draws() -> None:
    found = summary([[0.1, 0.1, 0.1, 0.1], [-0.3], []])
    assert found is not None
    assert (found.n, found.signed, found.mean) == (2, pytest.approx(-0.1), pytest.approx(0.2))
    assert (found.median, found.high, found.worst) == (0.1, 0.3, -0.3)
    assert summary([[]]) is None


def test_sources_that_had_a_part_in_their_own_constants_are_named(tmp_path: Path) -> None:
    found, _ = scored(read_rows(data(tmp_path, LINES["simumax-0000"], LINES["amp-1483"])), STAND_IN)
    held_out = about(found, ["amp", "simumax"], ["amp", "simumax"])
    assert held_out.endswith("constants that were fitted without the source of the row.")
    assert about(found, [], ["vtrain"]) == held_out
    assert about(found, ["amp"], ["amp", "simumax"]).endswith("were fitted on the rows of simumax too.**")


def test_the_page_shows_the_intervals_of_the_checked_in_table() -> None:
    page = estimate.DOCUMENT.read_text("utf-8")
    assert intervals_table(intervals.error_table()) in page
    assert page.count(estimate.BEGIN) == page.count(estimate.END) == 1


@pytest.mark.slow
def test_the_page_and_the_table_are_those_of_the_present_models() -> None:
    found, _ = scored(read_rows(estimate.DATA), estimate.PLANNER)
    assert error_table(found) == intervals.error_table()
    page = estimate.DOCUMENT.read_text("utf-8")
    assert by_class(found) in page
    assert by_source(found) in page


@pytest.mark.slow
def test_the_engine_reports_the_memory_of_rows_that_it_can(tmp_path: Path) -> None:
    rows = read_rows(data(tmp_path, LINES["simumax-0000"], LINES["sailor-0964"], LINES["mlm-1384"]))
    dense, mixed, experts = engine_report.reported(rows)
    assert dense == pytest.approx(rows[0].measured["allocated"], rel=0.1)
    assert mixed is None  # the engine has no such layout
    assert experts is not None
    assert experts > 2**30


def test_output_that_nobody_reads_ends_the_command(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "benchmarks.estimate", "--skip-report", "--data"]
    path = data(tmp_path, LINES["simumax-0000"])
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([*words, str(path)], stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
