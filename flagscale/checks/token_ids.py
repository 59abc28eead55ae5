"""Find the range of the token ids in a sound `.bin/.idx` pair, and the sequence that holds a wrong one.

Uses the standard library only, at about 1 GB/s: a chunk of tokens becomes one large integer with a lane for
each token, so an addition compares all tokens of the chunk with a threshold at once (SWAR).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from flagscale.checks.indexed import bin_path, sequence_at, summary

_CHUNK = 1 << 16  # bytes, so that all operands stay in the processor's cache


def id_range(prefix: Path) -> tuple[int, int]:
    """Return the smallest and the largest id of a sound pair of integers (call `problems` first)."""
    lanes = _Lanes.of(prefix)
    smallest, largest = lanes.top, 0
    for tokens in lanes.chunks(bin_path(prefix)):
        if lanes.reaching(tokens, largest + 1):
            largest = lanes.largest(tokens)
        if lanes.reaching(tokens, smallest) != lanes.signs:
            smallest = lanes.smallest(tokens)
    return smallest - lanes.bias, largest - lanes.bias


def first_sequence_outside(prefix: Path, vocabulary: int) -> int | None:
    """Return the first sequence of a sound pair that holds an id below 0, or of `vocabulary` or more."""
    lanes = _Lanes.of(prefix)
    for number, tokens in enumerate(lanes.chunks(bin_path(prefix))):
        negative = lanes.signs ^ lanes.reaching(tokens, lanes.bias)
        if wrong := negative | lanes.reaching(tokens, lanes.bias + vocabulary):
            lowest = (wrong & -wrong).bit_length() - 1
            return sequence_at(prefix, number * lanes.count + lowest // lanes.bits)
    return None


@lru_cache(maxsize=8)
def _repeated(value: int, bits: int, count: int) -> int:
    return int.from_bytes(value.to_bytes(bits // 8, "little") * count, "little")


@dataclass(frozen=True)
class _Lanes:
    """How a chunk of tokens is compared: signed ids are shifted by `bias`, so that all lanes are unsigned."""

    bits: int
    bias: int

    @classmethod
    def of(cls, prefix: Path) -> "_Lanes":
        held = summary(prefix)
        bits = 8 * (bin_path(prefix).stat().st_size // held.tokens)
        return cls(bits, 0 if held.dtype.startswith("u") else 1 << (bits - 1))

    @property
    def count(self) -> int:
        return 8 * _CHUNK // self.bits

    @property
    def top(self) -> int:
        return (1 << self.bits) - 1

    @cached_property
    def ones(self) -> int:
        """1 in every lane."""
        return self.lanes_of(1)

    @cached_property
    def signs(self) -> int:
        """The highest bit of every lane."""
        return self.ones << (self.bits - 1)

    @cached_property
    def below_signs(self) -> int:
        """All other bits of every lane."""
        return self.signs - self.ones

    def lanes_of(self, value: int) -> int:
        """Return an integer with `value` in every lane; some are kept, since a limit rarely changes."""
        return _repeated(value, self.bits, self.count)

    def chunks(self, file: Path) -> Iterator[int]:
        """Yield the tokens of a file; the last chunk is filled up with copies of its first token."""
        with file.open("rb") as tokens:
            while chunk := tokens.read(_CHUNK):
                filled = chunk + chunk[: self.bits // 8] * ((_CHUNK - len(chunk)) * 8 // self.bits)
                value = int.from_bytes(filled, "little")
                yield value ^ self.signs if self.bias else value

    def reaching(self, tokens: int, limit: int) -> int:
        """Return the highest bit of each lane whose value is `limit` or more."""
        half = 1 << (self.bits - 1)
        if limit > self.top:
            return 0
        rest = tokens & self.below_signs  # without the highest bits, so that no sum leaves its lane
        if limit > half:
            return (rest + self.lanes_of(2 * half - limit)) & tokens & self.signs
        return ((rest + self.lanes_of(half - limit)) | tokens) & self.signs

    def largest(self, tokens: int) -> int:
        return self._highest(lambda limit: self.reaching(tokens, limit) != 0)

    def smallest(self, tokens: int) -> int:
        return self._highest(lambda limit: self.reaching(tokens, limit) == self.signs)

    def _highest(self, holds: Callable[[int], bool]) -> int:
        """Return the highest value for which `holds` is true; it holds for 0 and up to some value."""
        found = 0
        for bit in reversed(range(self.bits)):
            if holds(found | 1 << bit):
                found |= 1 << bit
        return found
