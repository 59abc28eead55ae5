"""An estimate as a picture (SVG): memory by stage in stacked bars, and the timeline of the pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flagscale.estimates.text import GIB, alike, estimate_line, stages_text
from flagscale.planner.estimate import Estimate, StageEstimate
from flagscale.planner.time.timeline import Span, Timeline, walk
from flagscale.svg import box, document, line, text

_WIDTH, _LEFT, _RIGHT, _TOP = 960, 210, 20, 70
_PLOT = _WIDTH - _LEFT - _RIGHT
_BAR, _GAP, _ROW = 22, 8, 18
_LETTERS = 31
_WORK = 3000
"""Rectangles of a timeline, about; a file of a megabyte is slow to show."""
_PALETTE = (
    *("#4477aa", "#66ccee", "#228833", "#ccbb44", "#ee6677", "#aa3377", "#bb5533", "#88aa66", "#7777cc"),
    *("#cc7799", "#449999", "#997744", "#aaaaaa", "#3366cc", "#99cc99", "#dd9955", "#885577", "#558899"),
)
"""Colours that people with any sight can tell apart, on white and on black."""
_STYLE = """
.forward { fill: #4477aa; } .backward { fill: #ccbb44; } .wait { fill: var(--faint); opacity: 0.35; }
"""


def picture(name: str, found: Estimate) -> str:
    """Return the SVG text of an estimate."""
    memory, below = _memory(found, _TOP)
    timeline, height = _timeline(found, below) if found.speed else ([], below)
    title = estimate_line(found)
    parts = [text(16, 26, name, "title"), text(16, 46, title), *memory, *timeline]
    return document(_WIDTH, height, f"{name}: {title}", parts, _STYLE)


def _memory(found: Estimate, top: float) -> tuple[list[str], float]:
    """Return the bars, one for stages that are alike, and where they end."""
    groups = alike(found)
    most = max(max(one.high, one.chip.memory_bytes) for one in found.stages)
    scale = _PLOT / (1.02 * most)
    names = list(dict.fromkeys(term.name for one in found.stages for term in one.memory.terms))
    colours = {name: _PALETTE[number % len(_PALETTE)] for number, name in enumerate(names)}
    parts = [text(16, top, "memory of one rank by stage, GiB; dashed: the chip's; line: 95 %", "title")]
    y = top + 14.0
    for group in groups:
        parts += _bar(group, y, scale, colours)
        y += _BAR + _GAP
    parts += _axis(most / GIB, y, scale * GIB, "GiB")
    y += 34
    legend = list(_legend(names, colours, y))
    return [*parts, *legend], y + 18 * (1 + (len(names) - 1) // 3) + 24


def _bar(group: Sequence[StageEstimate], y: float, scale: float, colours: dict[str, str]) -> Iterator[str]:
    one = group[0]
    yield text(_LEFT - 8, y + 15, _label(group), "end")
    x = float(_LEFT)
    for term in one.memory.terms:
        wide = scale * term.nbytes
        title = f"{term.name}: {term.nbytes / GIB:.2f} GiB"
        yield box(x, y, wide, _BAR, f'fill="{colours[term.name]}"', title)
        x += wide
    middle = y + _BAR / 2
    yield line(_LEFT + scale * one.low, middle, _LEFT + scale * one.high, middle, "range")
    limit = _LEFT + scale * one.chip.memory_bytes
    yield line(limit, y - 3, limit, y + _BAR + 3, "limit")


def _label(group: Sequence[StageEstimate]) -> str:
    """Return the name of a bar; there is room for the chips of our table beside two numbers of stages."""
    name = f"stage {stages_text(group)}, {group[0].chip.name}"
    return name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}\N{HORIZONTAL ELLIPSIS}"


def _legend(names: Sequence[str], colours: dict[str, str], top: float) -> Iterator[str]:
    for number, name in enumerate(names):
        x, y = 16 + (number % 3) * (_WIDTH - 32) / 3, top + 18 * (number // 3)
        yield box(x, y - 10, 11, 11, f'fill="{colours[name]}"')
        yield text(x + 17, y, name)


def _timeline(found: Estimate, top: float) -> tuple[list[str], float]:
    """Return one row per stage with its work in order, and where they end."""
    assert found.speed
    whole = found.speed.step.timeline
    shown = _shortened(whole)
    scale = _PLOT / shown.seconds
    some = f", with {shown.micro_batches} of its {whole.micro_batches} micro-batches"
    title = f"timeline of the pipeline{'' if shown is whole else some}; blue: forward, yellow: backward"
    parts = [text(16, top, title, "title")]
    y = top + 14.0
    for stage, spans in enumerate(shown.spans):
        parts.append(text(_LEFT - 8, y + 13, f"stage {stage}", "end"))
        parts.append(box(_LEFT, y, _PLOT, _ROW - 3, 'class="wait"'))
        parts += (_work(spans, kind, y, scale) for kind in ("forward", "backward"))
        y += _ROW
    parts += _axis(shown.seconds, y, scale, "s")
    return parts, y + 40


def _work(spans: Sequence[Span], kind: str, y: float, scale: float) -> str:
    """Return all work of one kind of a stage as one shape: thousands of rectangles would be a large file."""

    def outline(span: Span) -> str:
        x, wide = _LEFT + scale * span.start, max(scale * (span.end - span.start) - 0.4, 0.3)
        return f"M{x:.1f} {y:g}h{wide:.1f}v{_ROW - 3}H{x:.1f}z"

    boxes = (outline(span) for span in spans if span.work.is_forward == (kind == "forward"))
    return f'<path class="{kind}" d="{"".join(boxes)}"/>'


def _shortened(whole: Timeline) -> Timeline:
    """Return the timeline, with fewer micro-batches if all of them would be too many to see."""
    stages, chunks = len(whole.layout.stages), whole.layout.chunks
    group = (whole.group or stages) if chunks > 1 else 1
    few = min(4 * stages, max(stages, _WORK // (2 * stages * chunks)))
    few = max(few // group, 1) * group
    return walk(whole.layout, few, whole.durations, whole.group) if few < whole.micro_batches else whole


def _axis(most: float, y: float, scale: float, unit: str) -> Iterator[str]:
    """Yield a line with round numbers; `scale`: points per unit."""
    sizes = (size * 10.0**power for power in range(-9, 9) for size in (1, 2, 5))
    step = next((size for size in sizes if size >= most / 8), most)
    yield line(_LEFT, y, _LEFT + _PLOT, y, "faint")
    for number in range(int(most / step) + 1):
        x = _LEFT + scale * step * number
        yield line(x, y, x, y + 5, "faint")
        yield text(x, y + 18, f"{step * number:.6g}{f' {unit}' if not number else ''}", "mid")
