"""One report for many hosts: those that say the same stand together, `node[001-997]: no space left`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from flagscale.config.host_names import compress
from flagscale.errors import HostError, Problem
from flagscale.values import Host

_ADDRESS = r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\w)"
_HOST = "HOST"
"""Stands for a host's own name in a message of several hosts."""


def host_error(summary: str, reports: Iterable[tuple[Host, str]]) -> HostError:
    """Return the error of hosts that failed, each with its message, in rank order."""
    return HostError(summary, [Problem(text, names) for names, text in grouped(reports)])


def grouped(reports: Iterable[tuple[Host, str]]) -> Iterator[tuple[str, str]]:
    """Yield the names of hosts, as ranges, and the message that they have in common.

    Messages may differ in the host's own name, which is then written as HOST, and in addresses, which are
    then listed: every one is shown.
    """
    alike: dict[tuple[str, ...], list[tuple[Host, list[str]]]] = {}
    for host, text in reports:
        # Text, address, text, address, text; the host's own name may be an address.
        parts = re.split(f"({_ADDRESS})", _without_name(host, text))
        alike.setdefault(tuple(parts[::2]), []).append((host, [text, *parts[1::2]]))
    for texts, members in alike.items():
        names = compress([host.name for host, _ in members])
        whole, *lists = zip(*(found for _, found in members), strict=True)
        if len({*whole}) == 1:
            yield names, whole[0]
            continue
        shown = [compress([*dict.fromkeys(addresses)]) for addresses in lists]
        yield names, "".join(word for pair in zip(texts, [*shown, ""], strict=True) for word in pair)


def _without_name(host: Host, text: str) -> str:
    """Return a message with HOST for the name of its host, also in the names of its files."""
    text = text.replace(host.label, f"host_RANK_{_HOST}")
    return re.sub(rf"(?<![\w.-]){re.escape(host.name)}(?![\w-]|\.\w)", _HOST, text)
