"""The types of our keys: the values that each takes, and the message for any other."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator

from flagscale.config.host_names import refusal
from flagscale.config.secrets import is_secret


def _not_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("input should be a number, not true or false")
    return value


def _ranks(value: object) -> object:
    """Check by hand, because pydantic would report one mistake once per member of the union."""
    if value == "auto":
        return value
    try:
        count = int(value) if isinstance(value, int | str) and not isinstance(value, bool) else 0
    except ValueError:
        count = 0
    if count < 1:
        raise ValueError("input should be `auto` or a whole number of at least 1")
    return count


def _hosts(value: object) -> object:
    """Return a number of hosts, or a range `min:max` as text."""
    numbers = str(value).split(":") if isinstance(value, str | int) and not isinstance(value, bool) else []
    if not 1 <= len(numbers) <= 2 or not all(number.strip().isdigit() for number in numbers):
        raise ValueError('input should be a whole number of hosts, or "min:max"')
    least, most = int(numbers[0]), int(numbers[-1])
    if not 1 <= least <= most:
        raise ValueError('input should be at least 1, and in "min:max" the smaller number comes first')
    return most if least == most else f"{least}:{most}"


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ValueError("an environment variable's name may contain only letters, digits and `_`")
    return value


def _no_secret(value: str) -> str:
    if is_secret(value):
        raise ValueError(f"`{value}` is a secret: it can only be set for all hosts")
    return value


def _text(value: object) -> object:
    """Return a value as text: YAML reads `VALUE: 0` as a number, but the environment holds text only.

    `text_values` has restored the text of values that read differently, such as `0022` and `yes`.
    """
    if value is None:
        raise ValueError('no value: write "" for an empty text, or quote the word if it is meant as text')
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


def _not_empty(value: str) -> str:
    if not value.strip():
        raise ValueError("input should not be empty")
    return value


def _known_home(value: str) -> str:
    try:
        Path(value).expanduser()
    except RuntimeError:
        raise ValueError("no home directory is known for this `~`; write the path in full") from None
    return value


def _streams(value: str) -> str:
    if not re.fullmatch(r"[0-3]|(\d:[0-3],)*\d:[0-3]", value):
        raise ValueError('input should be 0 (none), 1 (stdout), 2 (stderr), 3 (both), or by rank "0:3,1:2"')
    return value


def _host(value: str) -> str:
    if reason := refusal(value):
        raise ValueError(reason)
    return value


def _pairs(value: str) -> str:
    if not all(re.fullmatch(r"[^=]*\S[^=]*=.*\S.*", pair) for pair in value.split(",")):
        raise ValueError("input should be key=value[,key=value ...]")
    return value


def _ranks_on_host(value: str) -> str:
    if value and not re.fullmatch(r"\d+(,\d+)*", value):
        raise ValueError('input should be ranks of a host, such as "0,1"')
    return value


_PERFORMANCE = {
    "iteration_ms": "iteration_ms",
    "elapsed time per iteration (ms)": "iteration_ms",
    "tokens_per_s": "tokens_per_s",
    "tflops_per_gpu": "tflops_per_gpu",
    "throughput per gpu (tflop/s/gpu)": "tflops_per_gpu",
}
"""The figures of metrics.jsonl by their names, and by the texts that FlagScale v0.6.0 searched logs for."""


def _performance(value: str) -> str:
    name = _PERFORMANCE.get(value.replace("\\", "").strip().rstrip(":").lower())
    if name is None:
        raise ValueError(
            f"trials report {', '.join(dict.fromkeys(_PERFORMANCE.values()))}; choose one of these"
        )
    return name


def set_by_flagscale(instead: str) -> BeforeValidator:
    """Refuse a torchrun argument, unless its value is the one that has no effect."""

    def refuse(value: object) -> None:
        if value not in (None, False, ""):
            raise ValueError(f"this argument of torchrun is set by FlagScale: {instead}")

    return BeforeValidator(refuse)


Port = Annotated[int, BeforeValidator(_not_bool), Field(ge=1, le=65535)]
Seconds = Annotated[float, BeforeValidator(_not_bool), Field(gt=0)]
AS_TEXT = BeforeValidator(_text)
"""What distinguishes `Text` from `str`."""
Text = Annotated[str, AS_TEXT]
Streams = Annotated[Text, AfterValidator(_streams)]
Ranks = Annotated[int | Literal["auto"], PlainValidator(_ranks)]
Name = Annotated[str, AfterValidator(_name)]
HostName = Annotated[str, AfterValidator(_host)]
OpenName = Annotated[Name, AfterValidator(_no_secret)]
Whole = Annotated[int, BeforeValidator(_not_bool), Field(ge=0)]
Positive = Annotated[int, BeforeValidator(_not_bool), Field(gt=0)]
HostCount = Annotated[int | str, PlainValidator(_hosts)]
"""A number of hosts, or a range `min:max`."""
NOT_EMPTY = AfterValidator(_not_empty)
NotEmpty = Annotated[Text, NOT_EMPTY]
Pairs = Annotated[str, AfterValidator(_pairs)]
PerformanceName = Annotated[str, AfterValidator(_performance)]
RanksOnHost = Annotated[Text, AfterValidator(_ranks_on_host)]
UserPath = Annotated[str, AfterValidator(_known_home)]
"""A path that may begin with `~`."""
