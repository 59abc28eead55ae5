"""Show a heterogeneous layout: a table of its meshes, and a picture of which rank sends to which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from flagscale.checks.hetero.layout import HeteroLayout, Stage
from flagscale.checks.hetero.routing import receivers, side_of


def layout_text(layout: HeteroLayout, micro_batch_size: int, sequence_parallel: bool) -> str:
    """Return the table of the meshes and the picture of the pipeline, without a line break at the end."""
    return "\n".join([*_table(layout, micro_batch_size), "", *_picture(layout, sequence_parallel)])


def _table(layout: HeteroLayout, micro_batch_size: int) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [
        ("mesh", "type", "ranks", "tp", "cp", "ep", "dp", "pp", "layers", "micro-batch")
    ]
    for number, mesh in enumerate(layout.meshes):
        ranks = layout.ranks(number)
        span = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"
        degrees = (str(getattr(mesh, name)) for name in ("tp", "cp", "ep", "dp", "pp"))
        layers = "+".join(map(_chunks, mesh.layers))
        micro = str(layout.micro_batch_size(number, micro_batch_size))
        rows.append((str(number), mesh.type or "any", span, *degrees, layers, micro))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  " + "  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip()


def _picture(layout: HeteroLayout, sequence_parallel: bool) -> Iterator[str]:
    """Yield one line per stage, and between two stages one that shows which rank sends to which."""
    yield "  [ ]: ranks that share one part of the batch (tensor and context parallel)"
    next_of = {source.index: target for source, target in layout.boundaries}
    for stage in layout.stages:
        width = stage.tp * stage.cp
        cells = (stage.ranks[first : first + width] for first in range(0, len(stage.ranks), width))
        grid = " ".join(f"[{' '.join(map(str, cell))}]" for cell in cells)
        layers = f"{_chunks(stage.chunks)} layer{'s' if stage.layers > 1 else ''}"
        yield f"  stage {stage.index}  mesh {stage.mesh}  {layers:9}  {grid}"
        if stage.index in next_of:
            yield from _arrows(layout, stage, next_of[stage.index], sequence_parallel)
    if layout.chunks > 1:
        yield f"  from the last stage back to the first, for the next of {layout.chunks} chunks"


def _chunks(layers: Sequence[int]) -> str:
    return "/".join(map(str, layers))


def _arrows(layout: HeteroLayout, here: Stage, there: Stage, sequence_parallel: bool) -> Iterator[str]:
    sides = side_of(layout, here, sequence_parallel), side_of(layout, there, sequence_parallel)
    arrows = []
    for rank in here.ranks:
        targets = receivers(*sides, rank - here.first_rank)
        if targets:
            arrows.append(f"{rank} > {' '.join(str(there.first_rank + target) for target in targets)}")
    yield f"           {', '.join(arrows)}"
