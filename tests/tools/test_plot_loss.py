"""The plot of the loss: from complete, partial, repeated and missing metrics."""

import json
import math
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagscale.errors import UserError
from tools.plot_loss import plot, read_run, smooth


def write_metrics(folder: Path, iterations: int = 30, **more: float) -> Path:
    """Write the metrics of a run whose loss falls; return their file."""
    folder.mkdir(parents=True, exist_ok=True)
    records = [
        {
            "iteration": number,
            "lm_loss": 5 + 4 / number,
            "grad_norm": 1.0,
            "consumed_tokens": 4096 * number,
            **more,
        }
        for number in range(1, iterations + 1)
    ]
    file = folder / "metrics.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def picture_size(file: Path) -> tuple[int, int]:
    content = file.read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


@pytest.mark.filterwarnings("ignore:Glyph")
def test_one_run_is_plotted(weird_path: Path) -> None:
    write_metrics(weird_path, learning_rate=1e-3, tokens_per_s=3000, validation_loss=6.0)
    plot([read_run(weird_path)], weird_path / "loss.png")
    assert picture_size(weird_path / "loss.png") == (1200, 700)


def test_several_runs_and_a_single_iteration_are_plotted(tmp_path: Path) -> None:
    runs = [read_run(write_metrics(tmp_path / str(number), iterations=number)) for number in (1, 2, 3, 50)]
    plot(runs, tmp_path / "loss.png", title="sizes $compared$")
    assert picture_size(tmp_path / "loss.png") == (1200, 700)


def test_broken_lines_are_skipped_and_later_records_count(tmp_path: Path) -> None:
    file = write_metrics(tmp_path / "my run", iterations=3)
    killed_and_resumed = (
        '{"iteration": 4, "lm{"iteration": 2, "lm_loss": 1}\n{"iteration": 3, "lm_loss": 2.5}\n'
    )
    file.write_text(file.read_text() + killed_and_resumed + '{"iteration": 4, "lm_lo')
    loaded = read_run(file)
    assert loaded.name == "my run"
    assert loaded.series("lm_loss") == ([1, 2, 3], [9.0, 7.0, 2.5])


def test_an_evaluation_line_does_not_hide_the_training_line_of_its_iteration(tmp_path: Path) -> None:
    file = write_metrics(tmp_path, iterations=3)
    with file.open("a") as more:
        more.write('{"iteration": 3, "validation_loss": 5.5}\n')
    run = read_run(file)
    assert run.series("lm_loss")[0] == [1, 2, 3]
    assert run.validation_losses() == {"": ([3], [5.5])}


def test_values_that_are_not_finite_numbers_are_left_out(tmp_path: Path) -> None:
    file = write_metrics(tmp_path, iterations=2)
    bad = {3: "NaN", 4: "null", 5: "Infinity"}
    lines = [f'{{"iteration": {number}, "lm_loss": {value}}}\n' for number, value in bad.items()]
    file.write_text(file.read_text() + "".join(lines))
    assert read_run(file).series("lm_loss")[0] == [1, 2]


def test_the_validation_loss_of_each_set_is_found(tmp_path: Path) -> None:
    write_metrics(tmp_path / "a", iterations=2, validation_loss=6.0)
    assert read_run(tmp_path / "a").validation_losses() == {"": ([1, 2], [6.0, 6.0])}
    write_metrics(tmp_path / "b", iterations=2)
    assert read_run(tmp_path / "b").validation_losses() == {}
    sets = {
        "validation_loss/web": 6.0,
        "validation_loss/code": 5.0,
        "validation_load_balancing_loss/web": 1.0,
    }
    write_metrics(tmp_path / "c", iterations=1, **sets)
    assert read_run(tmp_path / "c").validation_losses() == {"code": ([1], [5.0]), "web": ([1], [6.0])}


@given(st.floats(-1e3, 1e3), st.floats(-10, 10), st.integers(1, 300))
def test_smoothing_keeps_a_straight_line(start: float, slope: float, length: int) -> None:
    line = [start + slope * number for number in range(length)]
    assert all(
        math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-6) for a, b in zip(smooth(line), line, strict=True)
    )


@pytest.mark.parametrize("content", ["", "\n", "not json", '{"iteration": 1}', "[1]"])
def test_metrics_without_a_loss_are_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(UserError, match="no iteration with an lm_loss yet"):
        read_run(tmp_path)


def test_the_command_line_plots_and_reports_mistakes_in_one_line(
    tmp_path: Path, tool: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    write_metrics(tmp_path / "run")
    assert tool("plot_loss.py", "run", "--output", "a.png").returncode == 0
    assert picture_size(tmp_path / "a.png") == (1200, 700)
    for wrong in (["absent"], ["run", "--output", "absent/a.png"], ["run", "--output", "a.xyz"]):
        done = tool("plot_loss.py", *wrong)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
