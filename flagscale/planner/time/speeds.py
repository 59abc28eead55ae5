"""Seconds of the kernels of one chip: multiplications, attention, and work that only moves bytes.

A multiplication takes the longer of its operations at the rate that large ones reach and its bytes at the
bandwidth of the device's memory, plus a ramp. What was measured on the chip (`curves`) comes first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from flagscale.errors import Problem, UserError
from flagscale.frozen import dataclass
from flagscale.planner.chips import Chip
from flagscale.planner.curves import Curves, attention_flop
from flagscale.planner.time.constants import Constants

NARROW = {"fp8": 1.0, "fp4": 0.5}
"""Bytes per element of the precisions to which the inputs of large multiplications are cast."""

_WIDTHS = {"float32": 4.0, **NARROW}
_INSTEAD = {
    "fp4": ("fp8", "bfloat16", "float16"),
    "fp8": ("bfloat16", "float16"),
    "bfloat16": ("float16",),
    "float16": ("bfloat16",),
    # Tensor cores multiply float32 in a shorter form, at half the rate of bfloat16.
    "float32": (),
}


@dataclass(frozen=True)
class Speeds:
    """The rates that one chip reaches."""

    precision: str
    """Of large multiplications."""
    plain: str
    """Of attention, of the output layer and of everything else."""
    flop_s: float
    """Of large multiplications."""
    plain_flop_s: float
    grouped_share: float
    attention_flop_s: float
    hbm_bytes_s: float
    ramp_s: float
    launch_s: float
    curves: Curves

    @property
    def width(self) -> float:
        """Bytes per element of activations."""
        return _WIDTHS.get(self.plain, 2.0)

    @property
    def is_narrow(self) -> bool:
        """Whether the inputs of large multiplications are cast first."""
        return self.precision in NARROW

    def multiply(self, m: float, n: float, k: float, is_plain: bool = False, out_width: float = 0.0) -> float:
        """Return the seconds of [m, k] times [k, n]; `out_width` bytes per element of the product."""
        precision = self.plain if is_plain else self.precision
        if (known := self.curves.gemm_s(precision, m, n, k)) is not None:
            return known
        rate = self.plain_flop_s if is_plain else self.flop_s
        moved = _WIDTHS.get(precision, 2.0) * (m * k + k * n) + (out_width or self.width) * m * n
        return max(2 * m * n * k / rate, moved / self.hbm_bytes_s) + self.ramp_s

    def multiply_groups(self, groups: float, m: float, n: float, k: float, out_width: float = 0.0) -> float:
        """Return the seconds of one product for each group, of [m, k] times [k, n]."""
        if (known := self.curves.grouped_s(self.precision, groups, m, n, k)) is not None:
            return known
        moved = _WIDTHS.get(self.precision, 2.0) * (m * k + k * n) + (out_width or self.width) * m * n
        one = max(2 * m * n * k / (self.flop_s * self.grouped_share), moved / self.hbm_bytes_s)
        return groups * one + self.ramp_s

    def attend(
        self, sequence: float, heads: float, width: float, is_backward: bool = False, part: float = 1.0
    ) -> float:
        """Return the seconds of causal attention that does not store its scores.

        `heads` are those of all samples, `width` the mean of a key's and a value's, `part` the share of the
        queries that this rank has.
        """
        known = self.curves.attention_s(self.plain, sequence, heads, width, is_backward)
        if known is not None:
            return known * part
        flop = attention_flop(sequence, heads, width, is_backward) * part
        return flop / self.attention_flop_s + self.ramp_s

    def move(self, nbytes: float) -> float:
        """Return the seconds of work that reads and writes `nbytes` in all."""
        return nbytes / self.hbm_bytes_s + self.ramp_s


def speeds(chip: Chip, compute: str, constants: Constants) -> Speeds:
    """Return what a chip reaches when large multiplications are computed in `compute`.

    Raises:
        UserError: the chip's peak or the bandwidth of its memory is not known.
    """
    plain = "bfloat16" if compute in NARROW else compute
    if problems := [*_missing(chip, {compute, plain})]:
        raise UserError(problems)
    known = [one for one in (compute, *_INSTEAD[compute]) if one in chip.flop_s]
    precision = known[0] if compute in NARROW and known else plain
    return Speeds(
        precision=precision,
        plain=plain,
        flop_s=_reached(chip, precision, constants),
        plain_flop_s=_reached(chip, plain, constants),
        attention_flop_s=_limited(chip, plain, constants) * constants.attention_share,
        grouped_share=_grouped_share(chip, constants),
        # A measured bandwidth is what was reached.
        hbm_bytes_s=chip.hbm_bytes_s * (1.0 if chip.measured.get("hbm_gb_s") else constants.hbm_share),
        ramp_s=constants.ramp_s,
        launch_s=constants.launch_s,
        curves=chip.curves,
    )


def peak(chip: Chip, compute: str) -> float:
    """Return the nominal FLOP/s in a precision, or in the one that is used instead; 0 if unknown."""
    if found := chip.flop_s.get(compute):
        return found
    if compute == "float32":
        return peak(chip, "bfloat16") / 2
    return next((chip.flop_s[one] for one in _INSTEAD[compute] if one in chip.flop_s), 0.0)


def _reached(chip: Chip, compute: str, constants: Constants) -> float:
    """Return the rate of large multiplications: the measured one, or the peak that power limits."""
    if measured := _benchmarked(chip, compute):
        return measured * constants.sustained_share
    return _limited(chip, compute, constants)


def _benchmarked(chip: Chip, compute: str) -> float:
    """Return the rate that a benchmark of multiplications measured on the chip, 0 if there is none."""
    if compute not in ("bfloat16", "float16"):
        return 0.0
    measured = chip.measured
    for key in (f"gemm_{compute.replace('loat', '')}_tflops", "gemm_bf16_tflops"):
        if found := measured.get(key):
            return 1e12 * (sum(found) / len(found) if isinstance(found, list) else found)
    share = measured.get("gemm_share_of_peak") or measured.get("gemm_share_of_peak_median") or 0.0
    return float(share) * peak(chip, compute)


def _grouped_share(chip: Chip, constants: Constants) -> float:
    grouped, ordinary = (
        chip.measured.get(f"{kind}_share{suffix}_median")
        for kind, suffix in (("grouped_gemm", ""), ("gemm", "_of_peak"))
    )
    return grouped / ordinary if grouped and ordinary else constants.grouped_share


def _limited(chip: Chip, compute: str, constants: Constants) -> float:
    """Return the rate that follows from the peak: power limits dense arithmetic, more so the faster it is."""
    nominal = peak(chip, compute)
    density = chip.power_w / (nominal / 1e12) if chip.power_w else _TYPICAL_DENSITY
    share: float = constants.gemm_share * density**constants.power_exponent
    return nominal * min(0.95, share)


_TYPICAL_DENSITY = 0.7
"""W per TFLOP/s of a chip whose power is not known."""


def _missing(chip: Chip, precisions: Collection[str]) -> Iterator[Problem]:
    for precision in sorted(precisions):
        if not peak(chip, precision):
            what = f"the peak of chip `{chip.name}` in {precision} is not known"
            hint = "set `bf16_tflops_dense` (or that of your precision) in the file of experiment.chips"
            yield Problem(what, hint=hint)
    if not chip.hbm_bytes_s:
        what = f"the bandwidth of the memory of chip `{chip.name}` is not known"
        yield Problem(what, hint="set `hbm_gb_s` in the file of experiment.chips")
