"""Servers: each instance of each model gets a place and its ports."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from flagscale.config.locate import Locator
from flagscale.config.schema import Experiment
from flagscale.engines.vllm_catalog import vllm_catalog
from flagscale.engines.vllm_keys import devices_of
from flagscale.engines.vllm_models import Model, first_ports, read_models
from flagscale.engines.vllm_placement import Size, place_instances
from flagscale.engines.vllm_programs import Instance, programs_of, served_name
from flagscale.engines.vllm_rules import findings, remarks
from flagscale.errors import Problem
from flagscale.inputs.model_folder import inputs_of
from flagscale.job import LOCAL_NAMES, Host, Job, Program, Role

SERVER = "vllm_flagscale.server"
ENV = {
    # vLLM renames its processes, which would overwrite the environment by which they are known as ours.
    "SPT_NOENV": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
STOP_GRACE = 15.0
_INNER_PORT = 29600
"""Default of the first port by which parts on several hosts meet (`experiment.runner.master_port`)."""
_PORTS_APART = 10


def read(
    group: str, raw: Mapping[str, Any], locator: Locator, problems: list[Problem]
) -> tuple[list[Model], dict[str, str]]:
    """Return the models and secrets of the task group; see `vllm_models.read_models`."""
    return read_models(group, raw, vllm_catalog().server, locator, problems)


def job(
    experiment: Experiment, hosts: tuple[Host, ...], locator: Locator, problems: list[Problem]
) -> Job | None:
    """Return the job; None where `problems` says why not."""
    models, secrets = read("serve", experiment.arguments, locator, problems)
    if problems:
        return None

    def where(model: Model, dest: str) -> str:
        return locator.where(model.arguments.paths.get(dest, f"{model.path}.{dest}"))

    for model in models:
        for dest, what in findings(model.arguments.values, hosts[0].platform, model.arguments.paths):
            problems.append(Problem(what, where(model, dest)))
    if problems:
        return None
    instances = _placed(models, hosts, experiment, locator, problems)
    problems += _instance_problems(instances, locator)
    if problems:
        return None
    programs: dict[int, list[Program]] = defaultdict(list)
    for instance in instances:
        for rank, program in programs_of(instance):
            programs[rank].append(program)
    notices = [
        f"{where(model, dest)}: {what}"
        for model in models
        for dest, what in remarks(model.arguments.values, model.arguments.paths)
    ]
    return Job(
        name=experiment.name,
        task_type="serve",
        engine="vllm",
        engine_version=vllm_catalog().server.version,
        role=Role(
            name="serve",
            entrypoint=experiment.task.entrypoint or SERVER,
            argv=(),
            env={**ENV, **_cpu_env(programs, hosts)},
            stop_grace=experiment.runner.stop_grace or STOP_GRACE,
        ),
        hosts=hosts,
        layout=", ".join(_layout(model) for model in models),
        programs={rank: tuple(found) for rank, found in programs.items()},
        inputs={"models": [inputs_of(model.arguments.values) for model in models]},
        secrets=secrets,
        notices=(*notices, *_notices(instances, hosts, experiment, secrets)),
    )


def _placed(
    models: list[Model],
    hosts: tuple[Host, ...],
    experiment: Experiment,
    locator: Locator,
    problems: list[Problem],
) -> list[Instance]:
    wanted = [(model, number) for model in models for number in range(model.instances)]
    sizes = [
        Size(devices_of(values), values["data_parallel_size"])
        for values in (model.arguments.values for model, _ in wanted)
    ]
    try:
        places = place_instances(sizes, hosts)
    except ValueError as error:
        what = f"the models do not fit the hosts: one {error}"
        hint = "lower the degrees or `instances`; slots: experiment.runner.nproc_per_node, hostfile"
        problems.append(Problem(what, locator.where("serve"), hint))
        return []
    ports = dict(zip((model.path for model in models), first_ports(models), strict=True))
    first_inner = experiment.runner.master_port or _INNER_PORT
    found = [
        Instance(model, number, size, ports[model.path] + number, first_inner + _PORTS_APART * index, parts)
        for index, ((model, number), size, parts) in enumerate(zip(wanted, sizes, places, strict=True))
    ]
    idle = {host.rank for host in hosts} - {part.host.rank for one in found for part in one.parts}
    if idle:
        what = f"no model runs on {', '.join(host.name for host in hosts if host.rank in idle)}"
        problems.append(Problem(what, locator.where("experiment.runner.nnodes"), "lower it"))
    return found


def _instance_problems(instances: list[Instance], locator: Locator) -> Iterator[Problem]:
    taken: dict[tuple[int, int], str] = {}
    names: set[str] = set()
    for one in instances:
        place = (one.parts[0].host.rank, one.port)
        where = locator.where(one.model.arguments.paths.get("port", f"{one.model.path}.port"))
        if not 1 <= one.port <= 65535:
            yield Problem(f"there is no port {one.port}", where)
        elif place in taken:
            yield Problem(f"port {one.port} of `{one.name}` is that of `{taken[place]}` too", where)
        taken[place] = one.name
        if one.name in names:
            yield Problem(f"two servers would be called `{one.name}`", locator.where(one.model.path))
        names.add(one.name)


def _cpu_env(programs: Mapping[int, list[Program]], hosts: tuple[Host, ...]) -> dict[str, str]:
    """Several engines on the processors of one host must not all take the same cores."""
    crowded = any(len(programs.get(host.rank, ())) > 1 and host.platform == "cpu" for host in hosts)
    return {"VLLM_CPU_OMP_THREADS_BIND": "nobind"} if crowded else {}


def _layout(model: Model) -> str:
    values = model.arguments.values
    degrees = {"TP": "tensor_parallel_size", "PP": "pipeline_parallel_size", "DP": "data_parallel_size"}
    parts = [f"{short}{values[name]}" for short, name in degrees.items() if values[name] > 1]
    times = f"{model.instances} x " if model.instances > 1 else ""
    return f"{times}{served_name(model)}{' ' if parts else ''}{' '.join(parts)}"


def _notices(
    instances: list[Instance], hosts: tuple[Host, ...], experiment: Experiment, secrets: Mapping[str, str]
) -> Iterator[str]:
    local = [one.name for one in instances if str(one.model.arguments.values["host"]) in LOCAL_NAMES]
    reached = [one.name for one in instances if one.name not in local]
    if local and len(hosts) > 1:
        yield f"{', '.join(local)}: answers on its own host's loopback address only; `host` says where else"
    if reached and not secrets.get("VLLM_API_KEY") and not experiment.envs.common().get("VLLM_API_KEY"):
        yield f"{', '.join(reached)}: answers anybody who reaches it; `api_key_file` asks clients for a key"
