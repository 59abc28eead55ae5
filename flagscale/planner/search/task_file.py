"""Write a plan as the text of a task file: YAML that `action=run` takes."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from flagscale.checks.hetero.keys import KEYS
from flagscale.planner.search.mesh_options import SEARCHED
from flagscale.planner.search.trainings import Rated

_OURS = {*SEARCHED, *KEYS}
_WIDTH = 110


def task_file(
    keys: Mapping[str, Any],
    plan: Rated,
    why: Sequence[str] = (),
    base: str = "",
    hosts: Sequence[str] = (),
) -> str:
    """Return the task file of a plan.

    Args:
        keys: the user's task group, in its sections; what the search decides is replaced.
        plan: what was found.
        why: sentences for the comment at the top.
        base: the name of the task file that `keys` come from, if the new one is to inherit it.
        hosts: what the comment says of the hosts, if these are not those of the search.
    """
    left = {name: value for name, value in plan.arguments.items() if name != "global_batch_size"}
    tree = _replaced(keys, left, bool(base))
    system = _section(tree.get("system"))
    hetero = {**_section(system.get("hetero")), **{name: left.pop(name) for name in KEYS if name in left}}
    added = {**left, **({"hetero": hetero} if hetero else {})}
    if added:
        tree["system"] = {**system, **added}
    lines = [*_comment(plan, why, hosts)]
    if base:
        lines += ["defaults:", f"  - {_scalar(base)}", "  - _self_", ""]
    return "\n".join([*lines, *_written(tree)]) + "\n"


def host_lines(hosts: Iterable[tuple[int, str]]) -> Iterator[str]:
    """Yield runs of equal hosts, given as slots and type ("": none): `2 x slots=8 type=H100`."""
    for (slots, kind), run in groupby(hosts):
        yield f"{len([*run])} x slots={slots}{f' type={kind}' if kind else ''}"


def _hosts(plan: Rated) -> Iterator[tuple[int, str]]:
    """Yield slots and type of the hosts that a plan needs."""
    for mesh, block in zip(plan.training.layout.meshes, plan.training.blocks, strict=True):
        whole, rest = divmod(mesh.ranks, block.per_node)
        yield from ((slots, mesh.type) for slots in (*[block.per_node] * whole, rest) if slots)


def _comment(plan: Rated, why: Sequence[str], given: Sequence[str]) -> Iterator[str]:
    layout = plan.training.layout
    what = (
        f"Written by a search of plans: {layout}, estimated at {plan.seconds:.3g} s per step "
        f"({plan.tokens_s:,.0f} tokens/s)."
    )
    hosts = f"The hosts, in the order of the hostfile: {', '.join(given or host_lines(_hosts(plan)))}."
    for sentence in (what, hosts, *why):
        yield from textwrap.wrap(sentence, _WIDTH, initial_indent="# ", subsequent_indent="#   ")


def _replaced(keys: Mapping[str, Any], left: dict[str, Any], is_inherited: bool) -> dict[str, Any]:
    """Return the keys, in their sections, with what was chosen in the place of what was given.

    What was not chosen is left out, or unset if the rest is inherited. The keys placed are taken from `left`.
    """
    found: dict[str, Any] = {}
    for name, value in keys.items():
        if isinstance(value, Mapping):
            if inner := _replaced(value, left, is_inherited):
                found[name] = inner
        elif name in left:
            found[name] = left.pop(name)
        elif name in _OURS and is_inherited and value is not None:
            found[name] = None
        elif name not in _OURS and not is_inherited:
            found[name] = value
    return found


def _section(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


def _written(tree: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    for name, value in tree.items():
        key = f"{indent}{_scalar(str(name))}:"
        if isinstance(value, Mapping) and value:
            yield key
            yield from _written(value, f"{indent}  ")
        elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            yield key
            yield from (f"{indent}  - {_flow(one)}" for one in value)
        else:
            yield f"{key} {_flow(value)}"


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_scalar(str(name))}: {_flow(one)}' for name, one in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_flow, value))}]"
    return _scalar(value)


_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_OTHERS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


def _scalar(value: Any) -> str:
    """Return a value in YAML; JSON is YAML, and quotes whatever could be read as something else."""
    is_plain = isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _OTHERS
    return str(value) if is_plain else _number(value)


def _number(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    # YAML 1.1 takes an exponent for a number only if there are a point and a sign.
    found = re.fullmatch(r"(-?\d+)(\.\d+)?e([+-]?)(\d+)", text)
    return f"{found[1]}{found[2] or '.0'}e{found[3] or '+'}{found[4]}" if found else text
