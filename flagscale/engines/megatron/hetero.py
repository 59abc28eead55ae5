"""Read a heterogeneous layout from the task file, check it, and hand it to the workers as one argument."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flagscale import platforms
from flagscale.checks.hetero.keys import (
    CHUNK_KEYS,
    CPU,
    CURRENT,
    EXTRA,
    KEYS,
    MESHES,
    TYPES,
    is_asked,
    read,
)
from flagscale.checks.hetero.layout import HeteroLayout
from flagscale.checks.hetero.rules import host_violations, mesh_values, mesh_violations
from flagscale.checks.hetero.text import layout_text
from flagscale.config.engine_args import FlatKey, Unknown
from flagscale.config.source_map import SourceMap
from flagscale.errors import Problem, Violation
from flagscale.values import Host

ARGUMENT = "hetero_layout"
"""The workers' argument (by dest): the whole layout as JSON; each rank finds its own part in it."""

_SET_BY_MESHES = ("tensor_model_parallel_size", "context_parallel_size", "expert_model_parallel_size")


@dataclass(frozen=True)
class Hetero:
    """The meshes in the task file: the layout, if it asks for one, and the key paths to blame."""

    layout: HeteroLayout | None
    """None if the job has no meshes, or a single one."""
    paths: Mapping[str, str]
    single: HeteroLayout | None = None
    """The layout if it has a single mesh, whose degrees are then ordinary arguments."""
    is_known: bool = True
    """Whether the keys have no mistake, so that without a layout there are no meshes."""


def take(
    flat_keys: Sequence[FlatKey], source_map: SourceMap, problems: list[Problem], notices: list[str]
) -> tuple[list[FlatKey], Hetero]:
    """Return the flat keys with the keys of meshes replaced by the workers' argument, and the layout."""
    ours = {flat_key.name: flat_key for flat_key in flat_keys if flat_key.name in KEYS}
    asked = is_asked({name: flat_key.value for name, flat_key in ours.items()})
    if asked:
        ours |= {flat_key.name: flat_key for flat_key in flat_keys if flat_key.name in CHUNK_KEYS}
    rest = [flat_key for flat_key in flat_keys if flat_key.name not in ours]
    given = {name: flat_key.value for name, flat_key in ours.items()}
    paths = {name: flat_key.path for name, flat_key in ours.items()}
    group = flat_keys[0].path.partition(".")[0] if flat_keys else ""
    for flat_key in rest:
        if flat_key.name == ARGUMENT:
            what = f"`{ARGUMENT}` is set by FlagScale: use `{MESHES}`"
            problems.append(Problem(what, source_map.where(flat_key.path)))
            return [one for one in rest if one is not flat_key], Hetero(None, paths, is_known=False)
    if any(value is Unknown.VALUE for value in given.values()):
        return rest, Hetero(None, paths, is_known=False)
    if not asked:
        for flat_key in ours.values():
            if flat_key.value not in (None, False):
                notices.append(f"{source_map.where(flat_key.path)}: ignored: heterogeneous meshes are off")
        return rest, Hetero(None, paths)
    if given.get(CURRENT) is not None:
        notices.append(
            f"{source_map.where(paths[CURRENT])}: dropped because the hostfile gives the type of each host"
        )
    layers = next((flat_key.value for flat_key in rest if flat_key.name == "num_layers"), None)
    layout, found = read(given, layers if isinstance(layers, int) else None)
    for dest, what in found:
        problems.append(Problem(what, source_map.where(paths.get(dest, f"{group}.{dest}"))))
    if layout is not None and len(layout.meshes) == 1:
        rest = _ordinary(layout, rest, ours, source_map, notices)
        return rest, Hetero(None, paths, single=layout)
    if layout is not None:
        path = paths.get(MESHES, group)
        rest.append(FlatKey(ARGUMENT, layout.to_json(), path))
        for flat_key in rest:
            if flat_key.name in _SET_BY_MESHES and flat_key.value not in (None, 1):
                notices.append(
                    f"{source_map.where(flat_key.path)}: ignored because `{MESHES}` sets it for each mesh"
                )
    return rest, Hetero(layout, paths, is_known=layout is not None)


def _ordinary(
    layout: HeteroLayout,
    flat_keys: Sequence[FlatKey],
    ours: Mapping[str, FlatKey],
    source_map: SourceMap,
    notices: list[str],
) -> list[FlatKey]:
    """Return the flat keys of the ordinary layout that a single mesh is."""
    own, path = layout.ordinary_arguments(), ours[MESHES].path
    kept: list[FlatKey] = []
    for flat_key in flat_keys:
        if flat_key.name in (*_SET_BY_MESHES, "sequence_parallel") and flat_key.name in own:
            if flat_key.value not in (None, own[flat_key.name]):
                notices.append(f"{source_map.where(flat_key.path)}: ignored because `{MESHES}` sets it")
        else:
            kept.append(flat_key)
            if flat_key.name == "pipeline_model_parallel_size" and flat_key.value is not None:
                del own[flat_key.name]  # a rule compares it with the mesh
    for name in (TYPES, CPU, EXTRA):
        if name in ours and ours[name].value not in (None, False):
            notices.append(f"{source_map.where(ours[name].path)}: ignored because there is only one mesh")
    notices.append(f"{source_map.where(path)}: is now an ordinary layout: {layout.meshes[0]}")
    return [*(FlatKey(name, value, path) for name, value in own.items()), *kept]


def variants(layout: HeteroLayout | None, values: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the arguments (by dest) as the ranks of each mesh have them; without a layout, as they are."""
    if layout is None:
        return [values]
    return [mesh_values(layout, values, number) for number in range(len(layout.meshes))]


def first_mesh(
    layout: HeteroLayout | None, values: Mapping[str, Any], world_size: int
) -> tuple[Mapping[str, Any], int]:
    """Return the arguments (by dest) of the first mesh and the number of ranks that its engine counts."""
    if layout is None:
        return values, world_size
    return mesh_values(layout, values, 0), layout.engine_world_size(0)


def violations(
    layout: HeteroLayout, values: Mapping[str, Any], hosts: Sequence[Host] | None, given: Sequence[str]
) -> Iterator[Violation]:
    """Yield every rule that a layout breaks, those of the hosts included if they are known."""
    types = [host.platform for host in hosts or () for _ in range(host.slots)]
    yield from mesh_violations(layout, values, layout.world_size if hosts is None else len(types), given)
    if layout.world_size == len(types):
        on_hosts = {name for name in types if platforms.find(name).is_host_processor}
        yield from host_violations(layout, types, on_hosts)


def picture(layout: HeteroLayout | None, values: Mapping[str, Any]) -> str:
    """Return the layout as a table and a picture; empty if there is none."""
    if layout is None:
        return ""
    return layout_text(layout, int(values["micro_batch_size"]), bool(values.get("sequence_parallel")))
