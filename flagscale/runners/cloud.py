"""`runner.type: cloud`: a platform starts this command on every host; it, or keys, say which host this is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from flagscale.config.schema import Runner
from flagscale.errors import Problem, UserError
from flagscale.run.rundir import RunDir

_NAMES = {
    "nnodes": ("PET_NNODES", "NNODES", "WORLD_SIZE"),
    "node_rank": ("PET_NODE_RANK", "NODE_RANK", "RANK"),
    "master_addr": ("PET_MASTER_ADDR", "MASTER_ADDR"),
    "master_port": ("PET_MASTER_PORT", "MASTER_PORT"),
}
"""What platforms set, best first. Outside of a rank, `WORLD_SIZE` and `RANK` count hosts."""

_MEANINGLESS = {
    "hostfile": "the platform starts the hosts",
    "include": "the platform chooses the hosts",
    "exclude": "the platform chooses the hosts",
    "max_restarts": "the platform restarts the hosts",
    "no_shared_fs": "every host runs its own command",
    "host_paths": "every host runs its own command",
}


def on_this_host(runner: Runner, environ: Mapping[str, str], where: Callable[[str], str]) -> Runner:
    """Return the runner with everything that the platform says filled in; keys of the experiment come first.

    Raises:
        UserError: something is missing, or is no number, or means nothing here.
    """
    problems = [
        Problem(f"`{key}` means nothing with type: cloud: {why}", where(f"experiment.runner.{key}"))
        for key, why in _MEANINGLESS.items()
        if getattr(runner, key)
    ]
    found: dict[str, int | str] = {}
    sources: dict[str, str] = {}
    for key, names in _NAMES.items():
        given = getattr(runner, key)
        name = next((name for name in names if environ.get(name)), "") if given is None else ""
        value = environ[name] if name else "" if given is None else str(given)
        sources[key] = name or where(f"experiment.runner.{key}")
        if key == "master_addr":
            found[key] = value
        elif value.isdigit():
            found[key] = int(value)
        elif value:
            problems.append(Problem(f"a number is needed, not `{value}`", sources[key]))
    hosts = found.get("nnodes", 1)
    for key in ("node_rank", "master_addr"):
        if hosts != 1 and found.get(key, "") == "" and sources[key] not in {one.where for one in problems}:
            what = f"`{key}` is needed with type: cloud and {hosts} hosts"
            hint = f"give the key, or one of the variables {', '.join(_NAMES[key])}"
            problems.append(Problem(what, sources[key], hint))
    rank = found.get("node_rank", 0)
    if not problems and not 0 <= int(rank) < int(hosts):
        problems.append(Problem(f"host {rank} of {hosts} hosts: ranks begin with 0", sources["node_rank"]))
    if problems:
        raise UserError(problems)
    return runner.model_copy(
        update={
            "nnodes": hosts,
            "node_rank": rank,
            "master_addr": found["master_addr"] or None,
            "master_port": found.get("master_port"),
        }
    )


def own_rank(given: int | None, environ: Mapping[str, str]) -> int:
    """Return which host this is, for looking after a run: 0 where nobody says."""
    told = (environ.get(name, "") for name in _NAMES["node_rank"])
    return given if given is not None else next((int(rank) for rank in told if rank.isdigit()), 0)


def run_dir(exp_dir: Path, rank: int) -> Path:
    """Return where a host of a platform keeps its part of a run: the hosts may share the run directory."""
    return RunDir(exp_dir).share_of(rank).path
