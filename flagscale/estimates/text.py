"""An estimate as text for people: memory of the stages term by term, the parts of a step, what limits it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import batched

from flagscale.errors import Problem
from flagscale.formats import count, quantity, seconds_text
from flagscale.planner.estimate import Estimate, Speed, StageEstimate
from flagscale.values import Job

GIB = 2**30
_COLUMNS = 6
"""Stages beside each other in the table."""


def estimate_text(job: Job, found: Estimate) -> str:
    """Return the whole estimate."""
    ranks = found.training.layout.world_size
    lines = [f"{job.name}: {count(ranks, 'rank')}, {job.layout}, {chips_text(found)}", ""]
    lines += _memory(found)
    lines += ["", *_speed(found)]
    lines += ["", f"limit: {limit_text(found)}"]
    lines += [f"note: {note}" for note in notes(found)]
    return "\n".join(lines)


def estimate_line(found: Estimate) -> str:
    """Return `memory: 61.2 GiB of 80 GiB (H100), at most 63.0 with 95 %; 1.93 s per step`."""
    one = found.fullest
    stage = f", stage {one.stage.index}" if len(found.stages) > 1 else ""
    memory = (
        f"memory: {_gib(one.memory.device)} GiB of {_whole(one)} GiB ({one.chip.name}{stage}), "
        f"at most {_gib(one.high)} with 95 %"
    )
    return f"{memory}; {seconds_text(found.speed.step.seconds)} per step" if found.speed else memory


def warning_text(found: Estimate) -> str:
    """Return that the memory may not suffice; "" if it does with 95 %."""
    if found.surely_fits:
        return ""
    worst = max(found.stages, key=lambda one: one.high / one.chip.memory_bytes)
    many = sum(not one.surely_fits for one in found.stages)
    others = f" (and {count(many - 1, 'other stage')})" if many > 1 else ""
    beyond = worst.high - worst.chip.memory_bytes
    verb = "may not fit" if found.fits else "does not fit"
    need = f"up to {_gib(worst.high)} GiB with 95 %, {_gib(beyond)} GiB more than the {_whole(worst)} GiB"
    return f"stage {worst.stage.index}{others} {verb}: {need} of {worst.chip.name}"


def limit_text(found: Estimate) -> str:
    """Return what limits the job, with numbers."""
    if found.limit == "memory":
        one = found.fullest
        return f"memory: stage {one.stage.index} needs {_gib(one.memory.device)} GiB of {_whole(one)} GiB"
    if not found.speed:
        return "not known without the time of a step"
    parts = sorted(found.speed.parts.items(), key=lambda part: -part[1])
    whole = found.speed.step.seconds
    shares = [f"{name} {_percent(part / whole)}" for name, part in parts if part >= 0.005 * whole]
    one = found.fullest
    memory = f"memory {_percent(one.share)} full in stage {one.stage.index}"
    return f"{shares[0]} of the step; then {', '.join([*shares[1:], memory])}"


def notes(found: Estimate) -> Iterator[str]:
    """Yield what the estimate assumes, and what is uncertain."""
    if warning := warning_text(found):
        yield warning
    model = found.training.model
    if model.experts and found.training.capacity is None:
        yield "experts are assumed to be balanced: without a capacity factor, nothing limits one's tokens"
    if model.caps_scores:
        what = "attention with a soft cap runs in plain operations, one group of heads at a time"
        yield f"{what}: their time and the scores that they hold meanwhile are not estimated"
    if found.speed and not found.is_calibrated:
        low, high = (end / found.speed.step.seconds for end in (found.speed.low, found.speed.high))
        what = f"published steps of such jobs took {low:.2f} to {high:.2f} times their estimate"
        yield f"not calibrated on this machine: {what} (docs/planner.md)"


def chips_text(found: Estimate) -> str:
    """Return `8 x H100`, or for meshes `8 x H100 | 16 x A800`."""
    meshes = zip(found.training.layout.meshes, found.training.blocks, strict=True)
    return " | ".join(f"{mesh.ranks} x {block.chip.name}" for mesh, block in meshes)


def alike(found: Estimate) -> list[list[StageEstimate]]:
    """Return the stages in groups of neighbours that differ in nothing."""
    groups: list[list[StageEstimate]] = []
    for one in found.stages:
        if groups and _key(groups[-1][0]) == _key(one):
            groups[-1].append(one)
        else:
            groups.append([one])
    return groups


def _key(one: StageEstimate) -> object:
    return (one.chip.name, one.stage.mesh, one.stage.chunks, one.memory.terms)


def stages_text(group: Sequence[StageEstimate]) -> str:
    """Return `0`, or `1-6` for several stages."""
    first, last = group[0].stage.index, group[-1].stage.index
    return f"{first}" if first == last else f"{first}-{last}"


def _memory(found: Estimate) -> Iterator[str]:
    yield "memory of one rank, GiB"
    names = dict.fromkeys((term.kind, term.name) for one in found.stages for term in one.memory.terms)
    kinds = list(dict.fromkeys(kind for kind, _ in names))
    for number, groups in enumerate(batched(alike(found), _COLUMNS)):
        if number:
            yield ""
        firsts = [group[0] for group in groups]
        rows: list[tuple[str, Iterable[str]]] = [
            ("stage", map(stages_text, groups)),
            ("chip", (one.chip.name for one in firsts)),
            ("layers", ("+".join(map(str, one.stage.chunks)) for one in firsts)),
        ]
        for kind, name in sorted(names, key=lambda one: kinds.index(one[0])):
            amounts = [_amount(one, kind, name) for one in firsts]
            if any(amounts):
                rows.append((f"  {name}", (_gib(amount) if amount else "-" for amount in amounts)))
        rows += [
            ("allocated", (_gib(one.memory.allocated) for one in firsts)),
            ("reserved", (_gib(one.memory.reserved) for one in firsts)),
            ("on the device", (_gib(one.memory.device) for one in firsts)),
            ("at most, 95 %", (_gib(one.high) for one in firsts)),
            ("memory of the chip", (_whole(one) for one in firsts)),
            ("fits", (_fits(one) for one in firsts)),
        ]
        yield from table(rows)


def table(rows: Iterable[tuple[str, Iterable[str]]]) -> Iterator[str]:
    """Yield lines of columns as wide as they need."""
    cells = [(title, list(values)) for title, values in rows]
    wide = max(len(title) for title, _ in cells)
    widths = [max(map(len, column)) for column in zip(*(values for _, values in cells), strict=True)]
    for title, values in cells:
        columns = (f"{value:>{width}}" for value, width in zip(values, widths, strict=True))
        yield f"  {title:{wide}}  {'  '.join(columns)}".rstrip()


def _amount(one: StageEstimate, kind: str, name: str) -> float:
    return sum(term.nbytes for term in one.memory.terms if (term.kind, term.name) == (kind, name))


def _fits(one: StageEstimate) -> str:
    return "yes" if one.surely_fits else "perhaps" if one.fits else "no"


def _speed(found: Estimate) -> list[str]:
    if not found.speed:
        return ["the time of a step is not known:", *map(_missing, found.missing)]
    speed = found.speed
    low, high = seconds_text(speed.low), seconds_text(speed.high)
    rows = [(f"  {name}", (seconds_text(part), _share(part, speed))) for name, part in speed.parts.items()]
    return [
        f"one step of {quantity(speed.tokens)} tokens: {seconds_text(speed.step.seconds)} "
        f"({low} to {high} with 95 %)",
        *(line[2:] for line in table(rows)),
        f"  {quantity(speed.tokens_s)} tokens/s, {quantity(speed.tokens_s_device)} per device; "
        f"{speed.flop_s_device / 1e12:.3g} TFLOP/s per device, MFU {_percent(speed.mfu)}",
    ]


def _missing(problem: Problem) -> str:
    return f"  {problem.what}\n    {problem.hint}"


def _share(part: float, speed: Speed) -> str:
    return _percent(part / speed.step.seconds)


def _gib(nbytes: float) -> str:
    value = nbytes / GIB
    return f"{value:.1f}" if value >= 1 else f"{value:.2f}" if value >= 0.005 else "<0.01"


def _whole(one: StageEstimate) -> str:
    return f"{one.chip.memory_bytes / GIB:.4g}"


def _percent(share: float) -> str:
    value = 100 * share
    return f"{value:.0f} %" if value >= 10 else f"{value:.1f} %" if value >= 0.05 or not value else "<0.1 %"
