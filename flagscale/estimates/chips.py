"""Which chip each host has: the command's `chip=`, the hostfile's `type=`, or the runner's platform."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flagscale import platforms
from flagscale.config.schema import Experiment
from flagscale.config.source_map import SourceMap
from flagscale.errors import Problem, UserError, closest, nearest
from flagscale.estimates.own_chips import Entry, read_chips
from flagscale.frozen import replace
from flagscale.planner.chips import Chip, chip_of, chip_table
from flagscale.values import Host

Entries = Mapping[str, Entry]
"""Entries of chips by name."""

_HOW = "give chip=NAME, experiment.runner.platform=NAME, or type=NAME in the hostfile"
_OWN = "a chip of your own takes an entry in the file that experiment.chips names"
_PROFILE = (
    "`python tools/profile_chip.py chips.json` measures this one; then set experiment.chips: chips.json"
)


class ChipUnknown(UserError):
    """A host's chip is not given, or nobody knows its figures."""


def chip_entries(experiment: Experiment) -> Entries:
    """Return every entry that a name can mean; those of the user's file come first.

    Raises:
        UserError: the user's file has mistakes.
    """
    return {**chip_table(), **(read_chips(experiment.chips) if experiment.chips else {})}


def spelling(name: str, entries: Entries) -> str:
    """Return the chip that a name means, as its entry writes it; "" if there is none.

    Case does not matter, and `A800` is enough for `A800-80` if no other chip begins so.
    """
    same = [one for one in entries if one.upper() == name.upper()] or _variants(name, entries)
    found = name if name in entries else same[0] if len(same) == 1 else ""
    target = entries.get(found)
    return target if isinstance(target, str) else found


def _variants(name: str, entries: Entries) -> list[str]:
    """Return the chips whose name goes on after a dash."""
    return [one for one in entries if one.upper().startswith(f"{name.upper()}-")]


def chips_of(
    experiment: Experiment, hosts: Sequence[Host], entries: Entries, asked: str, source_map: SourceMap
) -> tuple[Chip, ...]:
    """Return the chip of each host; `asked`: the command's `chip=`, which is that of all hosts.

    Raises:
        ChipUnknown: with every name that no chip has, and how to give one.
    """
    places = {asked: "chip"} if asked else _written(experiment, hosts, source_map)
    unknown = {name: place for name, place in places.items() if not spelling(name, entries)}
    if unknown:
        raise ChipUnknown(_unknown(name, place, entries) for name, place in unknown.items())
    names = (spelling(asked or _name(experiment, host), entries) for host in hosts)
    return tuple(_chip(name, entries[name], host) for name, host in zip(names, hosts, strict=True))


def chip_notes(experiment: Experiment, hosts: Sequence[Host], asked: str) -> list[str]:
    """Return that the command's `chip=` stands for hosts of which the hostfile says something else."""
    entries = chip_entries(experiment)
    wanted = spelling(asked, entries)
    named = dict.fromkeys(_name(experiment, host) for host in hosts) if asked else {}
    others = [name for name in named if name != asked and spelling(name, entries) != wanted]
    if not others or not experiment.runner.hostfile:
        return []
    types = " and ".join(f"type={name}" for name in others)
    return [f"all hosts are estimated as {wanted or asked} (chip=), not by {types} of the hostfile"]


def _chip(name: str, entry: Entry, host: Host) -> Chip:
    assert not isinstance(entry, str), "names are followed"
    chip = chip_of(name, entry)
    if platforms.find(host.platform).shares_devices:  # all ranks of the host, however many, share its links
        chip = replace(chip, per_node=max(chip.per_node, host.slots))
    return chip


def _name(experiment: Experiment, host: Host) -> str:
    """Return the name of a host's type, as the hostfile or the runner's `platform` writes it."""
    written = experiment.runner.platform
    is_own = written != "auto" and host.platform == platforms.find(written).name
    return written if is_own else host.platform


def _written(experiment: Experiment, hosts: Sequence[Host], source_map: SourceMap) -> dict[str, str]:
    """Return the names of the hosts' types and where each is written."""
    of_runner, file = source_map.where("experiment.runner.platform"), experiment.runner.hostfile
    own = {experiment.runner.platform, platforms.find(experiment.runner.platform).name}
    names = dict.fromkeys(_name(experiment, host) for host in hosts)
    return {name: f"{file}: type=" if file and name not in own else of_runner for name in names}


def _unknown(name: str, where: str, entries: Entries) -> Problem:
    """Return that a name is that of no chip; a platform's name may stand for chips of many kinds."""
    if variants := _variants(name, entries):
        what = f"`{name}` may be {' or '.join(variants)}"
        return Problem(what, where, f"use one of these names, or a line `{name}: CHIP` in experiment.chips")
    if name not in platforms.names():
        written = {one.upper(): one for one in entries}
        meant = closest(name.upper(), written)
        hint = f"did you mean `{written[meant]}`?" if meant else nearest(name, entries)
        return Problem(f"unknown chip `{name}`", where, f"{hint}; {_OWN}" if hint else _OWN)
    if platforms.find(name).is_host_processor:
        what = f"no figures of `{name}` are known: every machine has its own"
        return Problem(what, where, f"{_PROFILE}; for another machine, {_HOW}")
    what = f"the platform `{name}` has chips of many kinds"
    return Problem(what, where, f"{_HOW}; known: {', '.join(entries)}")
