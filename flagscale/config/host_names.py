"""Names and addresses of hosts: which can be one, which mean the same host, and ranges of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import product

from flagscale.values import LOCAL_NAMES

_LONGEST = 253
"""The longest name that DNS can hold."""
_MOST = 16384
"""The largest number of hosts that one range may stand for."""
_DIGITS = 9
"""The most digits of a number in a range."""
_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]+")
_RANGES = re.compile(r"\[([^\[\]]*)\]")
_RANGE = re.compile(r"([0-9]+)(?:-([0-9]+))?")
_OUTSIDE = re.compile(r",(?![^\[]*\])")
"""A comma that does not stand within brackets."""


def refusal(name: str) -> str:
    """Return why this cannot be the name or the address of a host; "" if it can."""
    if "@" in name:
        return f"`{name}` has a user in it"
    if name.startswith("["):
        return f"`{name}`: an IPv6 address is written without brackets"
    if ":" in name:
        return _not_ipv6(name)
    if len(name) > 1 and name.endswith("."):
        return f"`{name}` ends in a dot"
    if not _NAME.fullmatch(name) or ".." in name or len(name) > _LONGEST:
        return f"`{name}` is not a valid host name or address"
    return _not_ipv4(name)


def _not_ipv6(name: str) -> str:
    with suppress(ValueError):
        address = IPv6Address(name)
        if address.scope_id:
            return f"`{name}`: an address with the name of a network device is valid on one host only"
        return _not_one_host(address)
    if not re.fullmatch(r"[0-9A-Fa-f]*", name.partition(":")[0]):
        return f"`{name}` has a port or a number of processes in it"
    return f"`{name}` is not a valid IPv6 address"


def _not_ipv4(name: str) -> str:
    with suppress(ValueError):
        return _not_one_host(IPv4Address(name))
    if all(map(_NUMBER.fullmatch, name.split("."))):  # the system would read 010.0.0.1 as 8.0.0.1
        return (
            f"`{name}` cannot be a host; an IPv4 address has four numbers, 0 to 255, without zeros in front"
        )
    return ""


def _not_one_host(address: IPv4Address | IPv6Address) -> str:
    if address.is_unspecified or address.is_multicast or str(address) == "255.255.255.255":
        return f"`{address}` is not the address of a host"
    return ""


def canonical(name: str) -> str:
    """Return one spelling for all that mean the same host, whatever the network says."""
    if name.lower() in LOCAL_NAMES:
        return LOCAL_NAMES[0]
    try:
        address = ip_address(name)
    except ValueError:
        return name.lower().removesuffix(".")
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    found = str(mapped or address)
    return LOCAL_NAMES[0] if found in LOCAL_NAMES else found


def expand(names: str) -> list[str]:
    """Return the names that a list in Slurm's form stands for: `node[001-003,7],login` are five.

    A name without ranges stands for itself; whether it is valid is not checked.

    Raises:
        ValueError: a range is not clear; the message says why.
    """
    parts = _OUTSIDE.split(names)
    if not all(parts):
        raise ValueError(f"`{names}` has a comma without a host")
    return [name for part in parts for name in _each(part)]


def _each(name: str) -> list[str]:
    if name.startswith("[") and ":" in name:
        return [name]  # an IPv6 address in brackets
    if name.count("[") != name.count("]") or "[" in _RANGES.sub("", name):
        raise ValueError(f"`{name}`: the brackets do not match")
    texts = _RANGES.split(name)  # text, range, text, range, text
    choices = [_numbers(text, name) if place % 2 else [text] for place, text in enumerate(texts)]
    size = 1
    for choice in choices:
        size *= len(choice)
    if size > _MOST:
        raise ValueError(f"`{name}` stands for {size} hosts; the most is {_MOST}")
    return ["".join(parts) for parts in product(*choices)]


def _numbers(ranges: str, name: str) -> list[str]:
    found: list[str] = []
    for part in ranges.split(","):
        matched = _RANGE.fullmatch(part.strip())
        if not matched:
            raise ValueError(f"`{name}`: `[{ranges}]` is not a range such as [1-4] or [001-004,7]")
        first, last = matched[1], matched[2] or matched[1]
        if len(first) != len(last) and first.startswith("0") and first != "0":
            raise ValueError(f"`{name}`: write both ends of {part.strip()} with the same number of digits")
        if len(last) > _DIGITS or int(last) - int(first) >= _MOST:
            raise ValueError(f"`{name}`: {part.strip()} is not a range of at most {_MOST} numbers")
        if int(last) < int(first):
            raise ValueError(f"`{name}`: {part.strip()} counts down; write the smaller number first")
        found += [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    return found


def compress(names: Sequence[str]) -> str:
    """Return different names as a list in Slurm's form, which `expand` reads: `node[001-003,7],login`."""
    fields = {name: [name] if ":" in name else re.split(r"([0-9]+)", name) for name in names}
    found: dict[str, str] = {}
    # The names of one range differ in one number; the last number of a name is tried first.
    for place in range(2, max(map(len, fields.values()), default=0) + 1, 2):
        alike: dict[tuple[str, str], list[str]] = {}
        for name, parts in fields.items():
            if name not in found and place <= len(parts):
                around = "".join(parts[:-place]), "".join(parts[1 - place :])
                alike.setdefault(around, []).append(name)
        for (before, after), group in alike.items():
            if len(group) > 1:
                ranges = f"{before}[{_runs([fields[name][-place] for name in group])}]{after}"
                found |= dict.fromkeys(group, ranges)
    return ",".join(dict.fromkeys(found.get(name, name) for name in names))


def _runs(numbers: Sequence[str]) -> str:
    """Return numbers as `001-003,7`; both ends of a run are written as in the names."""
    runs: list[list[str]] = []
    for number in sorted(numbers, key=lambda one: (int(one), len(one))):
        last = runs[-1][-1] if runs else ""
        is_padded = number.startswith("0") or last.startswith("0")
        follows = last and int(number) == int(last) + 1 and (len(number) == len(last) or not is_padded)
        runs[-1:] = [[runs[-1][0], number]] if follows else [*runs[-1:], [number]]
    return ",".join("-".join(run) for run in runs)
