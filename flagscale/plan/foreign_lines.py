"""Lines of other launchers' hostfiles: the line to write instead, where its meaning is clear.

Read are the forms of Slurm (`node[1-4]`), MPICH, Hydra and Horovod (`host:slots`), Open MPI (`max_slots=`),
LSF (`host slots`), PBS (a line per slot), bash (`node{1..4}`), and addresses as `ssh` takes them
(`user@host`, `[ipv6]:port`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from flagscale.config.host_names import expand, refusal

FORM = "write `host slots=N` or `host slots=N type=NAME` on each line"
MAX_SLOTS = 1024
_SLOTS = ("slots", "slot", "gpus", "ngpus", "np", "nproc", "procs", "ppn", "cpus", "count")
_OPTIONS = {"user": "User", "login": "User", "port": "Port", "host": "HostName", "hostname": "HostName"}
"""Fields, without prefixes such as `ssh_` and `ansible_`, that are options of `~/.ssh/config`."""
_SSH_PORT = 22
_OUTSIDE = r"(?![^\[]*\])"
"""Not within brackets."""


@dataclass(frozen=True)
class _Place:
    """A host as `[user@]host[:number]`; the number is a port or counts processes."""

    host: str
    user: str = ""
    number: str = ""


def advice(line: str, repeated: int = 1) -> str:
    """Return how to write a line that is not in our form; without a clear meaning, the form itself.

    Args:
        repeated: how often the file holds this line.
    """
    ranges = re.sub(r"\{(\d+)\.\.(\d+)\}", r"[\1-\2]", re.sub(r"\{([\d,]+)\}", r"[\1]", line))
    joined = re.sub(r"\s*=\s*", "=", re.sub(r"(?i)\b(slots)\s*:\s*", r"\1=", ranges))
    entries = [entry for entry in re.split(rf"\s*[,;]\s*{_OUTSIDE}", joined) if entry]
    if len(entries) > 1 and all(_hosts_in(entry) == 1 for entry in entries):
        each = " and ".join(advice(entry).removeprefix("write ") for entry in entries)
        return f"write {each}, each on a line of its own"
    return _entry(re.split(rf"[\s,;]+{_OUTSIDE}", joined), repeated)


def _entry(words: list[str], repeated: int) -> str:
    """Return how to write the words of one host."""
    places = [_place(word) for word in words if _is_place(word)]
    if len(places) != 1 or not _is_valid(places[0].host):
        return FORM
    place, fields = places[0], dict(word.split("=", 1) for word in words if "=" in word)
    counts = [value.partition("(")[0] for key, value in fields.items() if key.lower() in _SLOTS]
    slots = next(filter(_is_count, [*counts, *words]), "")
    port = place.number if slots or not _is_count(place.number) or int(place.number) == _SSH_PORT else ""
    slots = slots or ("" if port else place.number) or (str(repeated) if repeated > 1 else "N")
    chip = f" type={fields['type']}" if fields.get("type") else ""
    options = {"User": place.user, "Port": port if slots != "N" else ""}
    options |= {
        name: value
        for key, value in fields.items()
        if (name := _OPTIONS.get(re.sub("^(ansible|ssh|_)+", "", key.lower())))
    }
    settings = [f"`{name} {value}`" for name, value in options.items() if value]
    steps = f"write `{place.host} slots={slots}{chip}`" + (" once" if repeated > 1 else "")
    if settings:
        steps += f", and {' and '.join(settings)} below `Host {place.host}` in ~/.ssh/config"
    return steps


def _is_place(word: str) -> bool:
    return bool(word) and "=" not in word and not word.isdigit()


def _is_count(word: str) -> bool:
    return re.fullmatch(r"[0-9]{1,4}", word) is not None and 1 <= int(word) <= MAX_SLOTS


def _hosts_in(entry: str) -> int:
    return sum(_is_valid(_place(word).host) for word in entry.split() if _is_place(word))


def _place(word: str) -> _Place:
    user, _, rest = word.removeprefix("ssh://").rpartition("@")
    matched = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::([0-9]{1,5}))?|([^:]+):([0-9]{1,5})(?::.*)?", rest)
    if not matched:
        return _Place(rest.removesuffix("."), user)
    return _Place(matched[1] or matched[3], user, matched[2] or matched[4] or "")


def _is_valid(host: str) -> bool:
    try:
        return not any(map(refusal, expand(host)))
    except ValueError:
        return False
