"""The servers of a `serve` group: each instance of each model is assigned its hosts, devices and ports."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from flagscale import platforms
from flagscale.checks.model_folder import inputs_of
from flagscale.config.schema import Experiment
from flagscale.config.source_map import SourceMap
from flagscale.engines.vllm.arguments import broken_rules, devices_of, remarks
from flagscale.engines.vllm.catalog import vllm_catalog
from flagscale.engines.vllm.lengths import may_exceed
from flagscale.engines.vllm.models import Instance, Model, first_ports, read_models, served_name, services_of
from flagscale.engines.vllm.placement import Size, place_instances
from flagscale.errors import Problem
from flagscale.values import LOCAL_NAMES, Host, Job, Role, Service

SERVER = "vllm_flagscale.server"
ENV = {
    # vLLM renames its processes, which would overwrite the environment variables that mark them as ours.
    "SPT_NOENV": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
STOP_GRACE = 15.0
_INNER_PORT = 29600
"""Default of the first port of instances with parts on several hosts (`experiment.runner.master_port`)."""
_PORTS_APART = 10


def read(
    group: str, raw: Mapping[str, Any], source_map: SourceMap, problems: list[Problem]
) -> tuple[list[Model], dict[str, str]]:
    """Return the models and secrets of the task group; see `models.read_models`."""
    return read_models(group, raw, vllm_catalog().server, source_map, problems)


def job(
    experiment: Experiment, hosts: tuple[Host, ...], source_map: SourceMap, problems: list[Problem]
) -> Job | None:
    """Return the job; None if there are `problems`."""
    models, secrets = read("serve", experiment.arguments, source_map, problems)

    def where(model: Model, dest: str) -> str:
        return source_map.where(model.arguments.paths.get(dest, f"{model.path}.{dest}"))

    on_host = platforms.find(hosts[0].platform).is_host_processor
    any_length = may_exceed(experiment.envs, hosts)
    for model in models:
        found = broken_rules(model.arguments, on_host, any_length)
        problems += [Problem(what, where(model, dest)) for dest, what in found]
    if problems:
        return None
    instances = _placed(models, hosts, experiment, source_map, problems)
    problems += _instance_problems(instances, source_map)
    if problems:
        return None
    services: dict[int, list[Service]] = defaultdict(list)
    for instance in instances:
        for rank, service in services_of(instance):
            services[rank].append(service)
    notices = [
        f"{where(model, dest)}: {what}"
        for model in models
        for dest, what in remarks(model.arguments.values, model.arguments.paths, on_host, any_length)
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
            env={**ENV, **_cpu_env(services, hosts)},
            stop_grace=experiment.runner.stop_grace or STOP_GRACE,
        ),
        hosts=hosts,
        layout=", ".join(_layout(model) for model in models),
        services={rank: tuple(found) for rank, found in services.items()},
        inputs={"models": [inputs_of(model.arguments.values) for model in models]},
        secrets=secrets,
        texts={path: text for model in models for path, text in model.arguments.texts.items()},
        notices=(*notices, *_notices(instances, hosts, experiment, secrets)),
    )


def _placed(
    models: list[Model],
    hosts: tuple[Host, ...],
    experiment: Experiment,
    source_map: SourceMap,
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
        what = f"the models do not fit on the hosts: one {error}"
        hint = "lower the degrees or `instances`; slots: experiment.runner.nproc_per_node, hostfile"
        problems.append(Problem(what, source_map.where("serve"), hint))
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
        problems.append(Problem(what, source_map.where("experiment.runner.nnodes"), "lower it"))
    return found


def _instance_problems(instances: list[Instance], source_map: SourceMap) -> Iterator[Problem]:
    used: dict[tuple[int, int], str] = {}
    names: set[str] = set()
    for one in instances:
        place = (one.parts[0].host.rank, one.port)
        where = source_map.where(one.model.arguments.paths.get("port", f"{one.model.path}.port"))
        if not 1 <= one.port <= 65535:
            yield Problem(f"port {one.port} must be between 1 and 65535", where)
        elif place in used:
            yield Problem(f"port {one.port} of `{one.name}` is also used by `{used[place]}`", where)
        used[place] = one.name
        if one.name in names:
            yield Problem(f"two servers would have the name `{one.name}`", source_map.where(one.model.path))
        names.add(one.name)


def _cpu_env(services: Mapping[int, list[Service]], hosts: tuple[Host, ...]) -> dict[str, str]:
    """Return the environment that keeps several engines on one host's processors off the same cores."""
    crowded = any(
        len(services.get(host.rank, ())) > 1 and platforms.find(host.platform).is_host_processor
        for host in hosts
    )
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
        yield f"{', '.join(local)}: answers only on its host's loopback address; set `host` to change that"
    if reached and not secrets.get("VLLM_API_KEY") and not experiment.envs.common().get("VLLM_API_KEY"):
        yield f"{', '.join(reached)}: answers everyone who can reach it; set `api_key_file` to require a key"
