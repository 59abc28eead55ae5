"""Draw the loss of one or several runs: `python tools/plot_loss.py RUN_DIR [RUN_DIR ...] --output loss.png`.

A run is a folder with a `metrics.jsonl`, or that file itself: one JSON object per logged iteration.
"""

import itertools
import json
import math
import sys
from argparse import ArgumentParser
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if not __package__:  # run as a file: import from the repository's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from flagscale.errors import UserError
from flagscale.run.rundir import RunDir
from tools.command import run

if TYPE_CHECKING:
    from matplotlib.axes import Axes

METRICS = RunDir(Path()).metrics.name

_COLOURS = ("#2563eb", "#dc2626", "#059669", "#9333ea", "#d97706", "#0891b2")
_MARKERS = "osD^vP"
"""One per validation set."""
_VALIDATION = "validation_loss"
_INK, _GREY = "#1f2937", "#6b7280"
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "text.color": _INK,
    "axes.edgecolor": "#d1d5db",
    "axes.labelcolor": _GREY,
    "axes.titlecolor": _INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#eef0f3",
    "xtick.color": _GREY,
    "ytick.color": _GREY,
    "legend.frameon": False,
    "axes.formatter.limits": (-3, 6),
    "text.parse_math": False,  # a run's name is not a formula
}

Series = tuple[list[int], list[float]]


@dataclass(frozen=True)
class Run:
    """The logged iterations of a run, in order."""

    name: str
    records: list[dict[str, Any]]

    def series(self, key: str) -> Series:
        """Return the iterations at which `key` is a finite number, and its values there."""
        points = [
            (record["iteration"], record[key]) for record in self.records if _is_number(record.get(key))
        ]
        return [iteration for iteration, _ in points], [value for _, value in points]

    def validation_losses(self) -> dict[str, Series]:
        """Return the validation losses by the name of their data set; it is "" if there is only one."""
        of_sets = sorted({key for record in self.records for key in record if key.startswith(_VALIDATION)})
        found = {key.removeprefix(_VALIDATION).removeprefix("/"): self.series(key) for key in of_sets}
        return {name: series for name, series in found.items() if series[0]}


def read_run(path: Path) -> Run:
    """Read the run of a folder or metrics file.

    A killed process leaves half a line, and a resumed one logs iterations again: broken lines are skipped,
    and if an iteration was logged twice, the later record counts.
    """
    file = path / METRICS if path.is_dir() else path
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        raise UserError(f"{file}: no such file; choose a run directory or its {METRICS}") from None
    records: dict[int, dict[str, Any]] = {}
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("iteration"), int):
            # An evaluation logs a line of its own for its iteration.
            records[record["iteration"]] = {**records.get(record["iteration"], {}), **record}
    name = file.resolve().parent.name if file.name == METRICS else file.stem
    loaded = Run(name, [records[iteration] for iteration in sorted(records)])
    if not loaded.series("lm_loss")[0]:
        raise UserError(
            f"{file}: no iteration with an lm_loss yet; wait until the run logs its first iteration"
        )
    return loaded


def smooth(values: list[float]) -> list[float]:
    """Return the curve without its noise: at each point, a line is fitted to the weighted neighbours.

    Unlike a moving average, it neither lags behind a falling loss nor bends at the ends.
    """
    import numpy as np

    if len(values) < 3:
        return values
    width = max(1, len(values) // 40)
    reach = 3 * width
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-((offsets / width) ** 2) / 2)

    def over_neighbours(kernel: Any, series: Any) -> Any:
        return np.convolve(series, kernel[::-1])[reach : reach + len(values)]

    here = np.ones(len(values))
    s0, s1, s2 = (over_neighbours(weights * offsets**power, here) for power in range(3))
    t0, t1 = (over_neighbours(weights * offsets**power, values) for power in range(2))
    return list((s2 * t0 - s1 * t1) / (s0 * s2 - s1**2))


def plot(runs: list[Run], output: Path, title: str | None = None) -> None:
    """Draw the runs and write the picture, 1200 x 700 pixels, in the format of `output`'s suffix."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    with mpl.rc_context(_STYLE):
        figure = pyplot.figure(figsize=(12, 7), dpi=100)
        grid = figure.add_gridspec(
            3,
            2,
            width_ratios=(2.5, 1),
            left=0.06,
            right=0.975,
            top=0.85,
            bottom=0.085,
            hspace=0.5,
            wspace=0.16,
        )
        _loss_panel(figure.add_subplot(grid[:, 0]), runs)
        panels = (
            ("grad_norm", "gradient norm"),
            ("learning_rate", "learning rate"),
            ("tokens_per_s", "tokens/s"),
        )
        for row, (key, label) in enumerate(panels):
            _small_panel(figure.add_subplot(grid[row, 1]), runs, key, label)
        figure.text(0.06, 0.945, title or ", ".join(run.name for run in runs), fontsize=17, fontweight="bold")
        figure.text(0.06, 0.908, _subtitle(runs), fontsize=11, color=_GREY)
        figure.savefig(output)
        pyplot.close(figure)


def _loss_panel(axes: "Axes", runs: list[Run]) -> None:
    alone = len(runs) == 1
    for run_, colour in zip(runs, itertools.cycle(_COLOURS), strict=False):
        iterations, losses = run_.series("lm_loss")
        raw = "each iteration" if alone else None
        smoothed = "smoothed" if alone else f"{run_.name}: {losses[-1]:.3f}"
        axes.plot(iterations, losses, color=colour, linewidth=0.8, alpha=0.35, label=raw)
        axes.plot(iterations, smooth(losses), color=colour, linewidth=2.4, label=smoothed)
        marker: dict[str, Any] = {
            "markeredgecolor": colour,
            "markeredgewidth": 1.8,
            "markersize": 7,
            "zorder": 5,
        }
        losses_of_sets = run_.validation_losses().items()
        for shape, (name, (validated, validation)) in zip(
            itertools.cycle(_MARKERS), losses_of_sets, strict=False
        ):
            what = f"validation {name}".rstrip()
            label = what if alone else f"{run_.name}, {what}: {validation[-1]:.3f}"
            axes.plot(validated, validation, shape, color="white", label=label, **marker)
    axes.set_title("language-model loss")
    axes.set_xlabel("iteration")
    axes.margins(x=0.015)
    axes.legend(loc="upper right")


def _small_panel(axes: "Axes", runs: list[Run], key: str, label: str) -> None:
    drawn = False
    for run_, colour in zip(runs, itertools.cycle(_COLOURS), strict=False):
        iterations, values = run_.series(key)
        drawn = drawn or bool(values)
        axes.plot(iterations, values, color=colour, linewidth=1.3)
    if not drawn:
        axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", va="center", color=_GREY)
    axes.set_title(label)
    axes.margins(x=0.02)
    axes.set_ylim(bottom=0)


def _subtitle(runs: list[Run]) -> str:
    if len(runs) > 1:
        return f"{len(runs)} runs compared"
    (only,) = runs
    iterations, losses = only.series("lm_loss")
    facts = [f"{iterations[-1]:,} iterations"]
    tokens = only.series("consumed_tokens")[1]
    if tokens:
        facts.append(f"{tokens[-1]:,.0f} tokens")
    return "  ·  ".join([*facts, f"loss {losses[0]:.2f} → {losses[-1]:.2f}"])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def main() -> int:
    """Draw from the command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help=f"run directory or its {METRICS}")
    parser.add_argument(
        "--output", type=Path, default=Path("loss.png"), help="file of the picture (default: %(default)s)"
    )
    parser.add_argument("--title", help="title of the picture (default: the names of the runs)")
    arguments = parser.parse_args()
    if not arguments.output.absolute().parent.is_dir():
        raise UserError(f"{arguments.output.parent}: no such folder; create it or choose another --output")
    if arguments.output.suffix not in (".png", ".svg", ".pdf"):
        raise UserError(f"{arguments.output}: --output must end in .png, .svg or .pdf")
    plot([read_run(path) for path in arguments.runs], arguments.output, arguments.title)
    print(arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
