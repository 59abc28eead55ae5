"""A heterogeneous layout in the task file: read, checked, and handed to the workers as one argument."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flagscale.checks.hetero.keys import CHUNK_KEYS, CURRENT, KEYS, MESHES, is_asked, read
from flagscale.checks.hetero.layout import Meshes
from flagscale.checks.hetero.rules import host_findings, mesh_findings, mesh_values
from flagscale.checks.hetero.text import layout_text
from flagscale.config.engine_args import Leaf
from flagscale.config.source_map import Locator
from flagscale.errors import Finding, Problem
from flagscale.values import Host

ARGUMENT = "hetero_layout"
"""The workers' argument (by dest): the whole layout as JSON; each rank finds its own part in it."""

_SET_BY_MESHES = ("tensor_model_parallel_size", "context_parallel_size", "expert_model_parallel_size")


@dataclass(frozen=True)
class Hetero:
    """What the task file says of meshes: the layout, if it asks for one, and the key paths to blame."""

    layout: Meshes | None
    paths: Mapping[str, str]


def take(
    leaves: Sequence[Leaf], locator: Locator, problems: list[Problem], notices: list[str]
) -> tuple[list[Leaf], Hetero]:
    """Return the leaves with the keys of meshes replaced by the workers' argument, and the layout."""
    ours = {leaf.name: leaf for leaf in leaves if leaf.name in KEYS}
    asked = is_asked({name: leaf.value for name, leaf in ours.items()})
    if asked:
        ours |= {leaf.name: leaf for leaf in leaves if leaf.name in CHUNK_KEYS}
    rest = [leaf for leaf in leaves if leaf.name not in ours]
    given = {name: leaf.value for name, leaf in ours.items()}
    paths = {name: leaf.path for name, leaf in ours.items()}
    group = leaves[0].path.partition(".")[0] if leaves else ""
    for leaf in rest:
        if leaf.name == ARGUMENT:
            what = f"`{ARGUMENT}` is how workers are told: write `{MESHES}`"
            problems.append(Problem(what, locator.where(leaf.path)))
            return rest, Hetero(None, paths)
    if not asked:
        for leaf in ours.values():
            if leaf.value not in (None, False):
                notices.append(f"{locator.where(leaf.path)}: not read, heterogeneous meshes are off")
        return rest, Hetero(None, paths)
    if given.get(CURRENT) is not None:
        notices.append(f"{locator.where(paths[CURRENT])}: dropped, the hostfile tells the type of each host")
    layers = next((leaf.value for leaf in rest if leaf.name == "num_layers"), None)
    layout, found = read(given, layers if isinstance(layers, int) else None)
    for dest, what in found:
        problems.append(Problem(what, locator.where(paths.get(dest, f"{group}.{dest}"))))
    if layout is not None:
        path = paths.get(MESHES, group)
        rest.append(Leaf(ARGUMENT, layout.to_json(), path))
        for leaf in rest:
            if leaf.name in _SET_BY_MESHES and leaf.value not in (None, 1):
                notices.append(f"{locator.where(leaf.path)}: not read, `{MESHES}` says it for each mesh")
    return rest, Hetero(layout, paths)


def variants(layout: Meshes | None, values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the arguments (by dest) as the ranks of each mesh have them; without a layout, as they are."""
    if layout is None:
        return [values]
    return [mesh_values(layout, values, number) for number in range(len(layout.meshes))]


def findings(
    layout: Meshes, values: Mapping[str, Any], hosts: Sequence[Host], given: Sequence[str]
) -> Iterator[Finding]:
    """Yield every rule that a layout breaks, those of the hosts included."""
    types = [host.platform for host in hosts for _ in range(host.slots)]
    wrong = list(mesh_findings(layout, values, len(types), given))
    yield from wrong
    if layout.world_size == len(types):
        yield from host_findings(layout, types)


def picture(layout: Meshes | None, values: Mapping[str, Any]) -> str:
    """Return the layout as a table and a picture; empty where there is none."""
    if layout is None:
        return ""
    return layout_text(layout, int(values["micro_batch_size"]), bool(values.get("sequence_parallel")))
