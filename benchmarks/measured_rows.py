"""Published measurements as jobs that the planner can estimate: one row of measured.jsonl -> `Row`.

The form of a row is described in docs/planner.md, section "Errors".
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.measured_arguments import arguments_of, published_arguments, with_defaults
from benchmarks.measured_fields import Assumed, Fields, Unusable, failure
from benchmarks.measured_layouts import copies_of, layout_arguments
from benchmarks.measured_model import refuse_kind
from flagscale.checks.degrees import violations
from flagscale.errors import Problem, UserError, first_line
from flagscale.planner.chips import Chip, Link, find_chip
from flagscale.planner.intervals import class_of
from flagscale.planner.memory.stage_memory import memory
from flagscale.planner.reading import training_of
from flagscale.planner.time.flops import model_flops
from flagscale.planner.training import Training

GIB = 2**30
FUNCTIONAL_TESTS = "mlm"
"""A source of tiny models (12 layers of 512), for a few iterations, in which the host's time decides."""
_ALIASES = {"V100": "V100-16", "BI-V150": "Iluvatar-BI-V150", "A800": "A800-80", "A100": "A100-80"}
"""The names of sources for chips of chips.json. AMP's V100 are those of p3.8xlarge, with 16 GB."""

_HOST_GBIT = {"g4dn.12xlarge": {"T4": 50.0}, "p3.8xlarge": {"V100": 10.0}}
"""The network of AWS instances per host and chip (AWS's pages of the G4 and P3 instances)."""


@dataclass(frozen=True)
class Row:
    """One measurement."""

    id: str
    place: str
    """File and line."""
    source: str
    quality: str
    chip: str
    """As the source calls it."""
    software: str
    group: str
    measured: Mapping[str, float]
    """Bytes (allocated, reserved, device: as the vendor's tool shows it) and seconds (time), if usable."""
    copies: tuple[Training, ...] = ()
    """The job; several if the copies of the model have different chips: the largest figure counts."""
    values: Mapping[str, Any] | None = None
    """The engine's arguments (by dest), defaults included."""
    world_size: int = 0
    kind: str = ""
    """Its class, one of `intervals.CLASSES`."""
    is_last_stage: bool = False
    """Whether the memory is that of the last stage; else it is the largest of all ranks."""
    predictions: Mapping[str, Mapping[str, float]] | None = None
    """By tool: what it predicted, in the units of `measured`."""
    assumed: tuple[str, ...] = ()
    reason: str = ""
    """Why it cannot be estimated; empty if it can."""
    is_wrong: bool = False
    """Whether the row itself is at fault, rather than outside what the planner knows."""

    @property
    def machine(self) -> tuple[str, str, str]:
        """Source, chip and software: the rows that one calibration is for."""
        return self.source, self.chip, self.software


def read_rows(path: Path) -> list[Row]:
    """Return every line of a file; lines that are no row have `is_wrong`.

    Raises:
        UserError: the file cannot be read, holds no line, or is one list instead of one object per line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise UserError([Problem(f"cannot read the measurements: {error.strerror}", str(path))]) from None
    lines = [*_numbered(text)]
    if not lines:
        raise UserError([Problem("the file holds no measurements", str(path))])
    if len(lines) > 1 and lines[0][1].lstrip().startswith("[") and _is_list(text):
        what = "the measurements are one JSON list; write one object per line, without brackets and commas"
        raise UserError([Problem(what, str(path))])
    seen: dict[str, int] = {}
    return [_once(row_of(line, f"{path}:{number}"), line.strip(), number, seen) for number, line in lines]


def _numbered(text: str) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _is_list(text: str) -> bool:
    try:
        return isinstance(json.loads(text), list)
    except ValueError:
        return False


def _once(row: Row, line: str, number: int, seen: dict[str, int]) -> Row:
    """Return a row that repeats an earlier line with that as its reason: it must not count twice."""
    first = seen.setdefault(line, number)
    if first == number or row.is_wrong:
        return row
    return replace(row, reason=f"the same as line {first}", copies=())


def row_of(line: str, place: str) -> Row:
    """Return one line as a row."""
    empty = Row("", place, "", "", "", "", "", {}, is_wrong=True)
    try:
        given = json.loads(line)
    except ValueError as error:
        return replace(empty, reason=f"not JSON: {first_line(error)}")
    if not isinstance(given, dict):
        return replace(empty, reason=f"a row must be a JSON object, not {type(given).__name__}")
    fields = Fields(given)
    head = replace(empty, id=str(given.get("id") or ""), is_wrong=False)
    try:
        head = _head(head, fields)
        return _estimable(head, fields)
    except Unusable as error:
        return replace(head, reason=error.reason, is_wrong=error.is_wrong)
    except UserError as error:
        return replace(head, reason="; ".join(problem.what for problem in error.problems))
    except Exception as error:
        # As in `scored`: one row must not cost the others.
        return replace(head, reason=failure("reading failed", error), is_wrong=True)


def _head(row: Row, fields: Fields) -> Row:
    row = replace(row, source=fields.at("source").text("key", "unknown"))
    row = replace(row, quality=fields.text("quality", "B"), group=fields.text("group"))
    return replace(
        row,
        chip=fields.at("hardware").text("gpu", "unknown"),
        software=json.dumps(fields.at("software").values, sort_keys=True),
    )


def _estimable(row: Row, fields: Fields) -> Row:
    """Return the row with its job, or raise why it has none."""
    if row.quality == "C":
        raise Unusable("quality C: doubtful or incomplete")
    refuse_kind(fields)
    assumed = Assumed()
    given = fields.at("flags").at("megatron_args")
    values = published_arguments(given) if given.values else arguments_of(fields, assumed)
    hardware = fields.at("hardware")
    world = hardware.whole("count")
    per_node = min(world, hardware.whole("gpus_per_node", world))
    copies = [] if given.values else copies_of(fields)
    if copies:
        arguments = [(with_defaults({**values, **layout_arguments(one.layout)}), one.chips) for one in copies]
    else:
        arguments = [(with_defaults(values), (row.chip,))]
        _refuse(arguments[0][0], world)
    jobs = tuple(
        training_of(of_copy, world, [_chip(name, fields) for name in chips], [per_node] * len(chips))
        for of_copy, chips in arguments
    )
    for job in jobs:
        _check(job, world)
        if assumed.facts:
            _check_memory(job, assumed)
    return replace(
        row,
        measured=_measured(fields, assumed, jobs[0], world),
        copies=jobs,
        values=arguments[0][0],
        world_size=world,
        kind=_kind(jobs),
        is_last_stage=row.source == FUNCTIONAL_TESTS,
        predictions=_predictions(fields),
        assumed=tuple(assumed.facts),
    )


def _refuse(values: Mapping[str, Any], world: int) -> None:
    """Raise if the engine would refuse the arguments."""
    # `_check` reports batches that do not divide; other versions allow other numbers of micro-batches.
    broken = [what for dest, what in violations(values, world) if dest != "global_batch_size"]
    if broken:
        raise Unusable(f"the engine would refuse it: {broken[0]}")


_TOO_MUCH = 1.25
"""Times the memory of a chip that a job with assumed facts needs, from which the facts must be wrong."""


def _check_memory(job: Training, assumed: Assumed) -> None:
    """Raise if a job cannot have run with what was assumed for it."""
    for stage in memory(job):
        chip = job.blocks[job.layout.stages[stage.stage].mesh].chip
        if stage.allocated > _TOO_MUCH * (chip.memory_bytes or math.inf):
            needs = f"{stage.allocated / GIB:.0f} GiB of {chip.memory_bytes / GIB:.0f}"
            raise Unusable(f"does not fit with {' and '.join(assumed.facts)}: it needs {needs}")


def _check(job: Training, world: int) -> None:
    """Raise if the parts of a job do not fit together."""
    layers = sum(stage.layers for stage in job.layout.stages)
    if layers != job.model.layers:
        raise Unusable(f"the stages have {layers} layers, but the model {job.model.layers}")
    if job.layout.world_size != world:
        raise Unusable(f"the degrees need {job.layout.world_size} devices, not {world}")
    step = job.layout.meshes[0].dp * job.blocks[0].micro_batch
    if job.batch % step or job.batch < step:
        raise Unusable(f"a batch of {job.batch} is not a multiple of {step}, one micro-batch of all copies")


def _chip(name: str, row: Fields) -> Chip:
    chip = find_chip(_ALIASES.get(name, name))
    hardware = row.at("hardware")
    for instance, speeds in _HOST_GBIT.items():
        if instance in hardware.text("cluster") and name in speeds:
            per_device = 1e9 / 8 * speeds[name] / hardware.whole("gpus_per_node")
            chip = replace(chip, outside=Link(per_device, chip.outside.latency_s))
    return chip


def _kind(jobs: tuple[Training, ...]) -> str:
    """Return the most special class of the copies; copies with different chips make the job a mixed one."""
    chips = {block.chip.name for job in jobs for block in job.blocks}
    return "mixed" if len(chips) > 1 else class_of(jobs[0])


_GIB_KEYS = {"allocated": "peak_alloc_gib", "reserved": "peak_reserved_gib", "device": "nvidia_smi_gib"}
ON_DEEPSPEED = ("sailor",)
"""Sources with another engine, whose peak is what nvidia-smi shows, although the rows say `peak_alloc_gib`
(sailor's deepspeed/pipe_engine.py, `get_total_used_mem`; its process_results.py takes the maximum)."""


def _measured(row: Fields, assumed: Assumed, job: Training, world: int) -> dict[str, float]:
    measured = row.at("measured")
    found: dict[str, float] = {}
    if assumed.is_memory_known:
        for name, key in _GIB_KEYS.items():
            if (gib := measured.positive(key)) is not None:
                found[name] = gib * GIB
        if (nbytes := measured.positive("peak_alloc_bytes")) is not None:
            found["allocated"] = nbytes
        if row.at("source").text("key") in ON_DEEPSPEED and "allocated" in found:
            found = {"device": found["allocated"]}
    if (seconds := _seconds(row, job, world)) is not None:
        found["time"] = seconds
    if not found:
        raise Unusable("not published: a time, or a memory that nothing unknown decides")
    return found


def _seconds(row: Fields, job: Training, world: int) -> float | None:
    """Return the seconds of a step, if need be from a rate of tokens or of the model's operations."""
    measured = row.at("measured")
    if (seconds := measured.positive("iteration_s")) is not None:
        return seconds
    if (rate := measured.positive("tokens_per_s_per_gpu")) is not None:
        return job.batch * job.sequence / (rate * world)
    if (rate := measured.positive("tflops_per_gpu")) is not None:
        # Published rates count causal attention half, as `model_flops` does.
        return model_flops(job) / (1e12 * rate * world)
    return None


def _predictions(row: Fields) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    predictions = row.at("predictions")
    for tool in predictions.values:
        own = predictions.at(tool)
        figures = {name: own.positive(key) for name, key in _GIB_KEYS.items()}
        known = {name: gib * GIB for name, gib in figures.items() if gib is not None}
        if (seconds := own.positive("iteration_s")) is not None:
            known["time"] = seconds
        if known:
            found[tool] = known
    return found
