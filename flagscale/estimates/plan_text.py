"""The answer of `plan=auto`, for people and for programs."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from flagscale.estimates.as_json import estimate_tree
from flagscale.estimates.auto_plan import Chosen
from flagscale.estimates.text import estimate_text, table
from flagscale.formats import quantity, seconds_text
from flagscale.planner.search.plans import Rated


def auto_plan_text(plan: Chosen, task_file: Path | None) -> str:
    """Return the chosen plan with its estimate, what was considered, and how to run it."""
    lines = [estimate_text(plan.job, plan.estimate), "", "considered:"]
    lines += [f"  {sentence}" for sentence in plan.found.considered]
    rows = [("plan", ("step", "tokens/s"))]
    rows += [(f"{number}", _row(one)) for number, one in enumerate(plan.found.plans, start=1)]
    layouts = ["layout", *map(_layout, plan.found.plans)]
    lines += [f"{line}  {layout}" for line, layout in zip(table(rows), layouts, strict=True)]
    lines += ["", *_instructions(plan, task_file)]
    return "\n".join(lines)


def _row(one: Rated) -> tuple[str, str]:
    return seconds_text(one.seconds), quantity(one.tokens_s)


def _layout(one: Rated) -> str:
    """Return everything in which plans differ."""
    layout = one.training.layout
    runs = groupby("+".join(map(str, stage.chunks)) for stage in layout.stages)
    layers = [f"{layers} x{count}" if (count := len([*same])) > 1 else layers for layers, same in runs]
    parts = [f"{layout}", f"layers {' '.join(layers)}", f"micro-batch {one.training.blocks[0].micro_batch}"]
    if granularity := one.arguments.get("recompute_granularity"):
        parts.append(f"recompute {granularity}")
    return ", ".join(parts)


def _instructions(plan: Chosen, task_file: Path | None) -> Iterator[str]:
    if task_file is None:
        yield "# the task file (task_file=FILE.yaml writes it)"
        yield plan.task_file.rstrip("\n")
        if not plan.takes_all:
            yield "# the hostfile"
            yield plan.hostfile.rstrip("\n")
        return
    group = plan.job.task_type
    words = " ".join([f"{group}={task_file.stem}", *plan.words(str(hostfile_of(task_file)))])
    yield f"task file: {task_file}"
    if not plan.takes_all:
        yield f"hostfile:  {hostfile_of(task_file)}"
    where = (
        ""
        if task_file.parent.name == group
        else f" once the task file is in the folder {group}/ beside the experiment"
    )
    yield f"run it with the same command and {words} action=run{where}"


def hostfile_of(task_file: Path) -> Path:
    """Return where the hostfile of a task file is written."""
    return task_file.with_suffix(".hostfile")


def auto_plan_tree(plan: Chosen) -> dict[str, Any]:
    """Return the object that `output=json` prints."""
    return {
        **estimate_tree(plan.job, plan.estimate),
        "plan": {
            "arguments": dict(plan.found.best.arguments),
            "hosts": [{"name": host.name, "slots": host.slots, "type": host.platform} for host in plan.hosts],
            "considered": list(plan.found.considered),
            "alternatives": [
                {
                    "layout": str(one.training.layout),
                    "seconds": one.seconds,
                    "tokens_per_s": one.tokens_s,
                    "arguments": dict(one.arguments),
                }
                for one in plan.found.plans[1:]
            ],
        },
    }
