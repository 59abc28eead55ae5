"""The servers of a `serve` group: each instance of each model is assigned its hosts, devices and ports."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

from flagscale import platforms
from flagscale.checks.model_folder import inputs_of
from flagscale.config.schema import Experiment
from flagscale.config.source_map import SourceMap
from flagscale.engines.vllm import endpoint
from flagscale.engines.vllm.arguments import DEGREES, broken_rules, devices_of, remarks
from flagscale.engines.vllm.catalog import vllm_catalog
from flagscale.engines.vllm.emu3_model import serves_emu3
from flagscale.engines.vllm.guidance import broken_by_guidance
from flagscale.engines.vllm.lengths import may_exceed
from flagscale.engines.vllm.models import Instance, Model, read_models, served_name, services_of
from flagscale.engines.vllm.placement import Size, place_instances
from flagscale.errors import Problem, Violation
from flagscale.formats import count as count_of
from flagscale.values import LOCAL_NAMES, Host, Job, Role, Service

SERVER = "vllm_flagscale.server"
ENV = {
    # vLLM renames its processes, which would overwrite the environment variables that mark them as ours.
    "SPT_NOENV": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
STOP_GRACE = 20.0
"""Seconds for begun requests. With the seconds after it for the engine to exit, it is less than the 30 s that
Kubernetes gives a container by default."""
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
        found = [*broken_rules(model.arguments, on_host, any_length), *combined_violations(model)]
        problems += [Problem(what, where(model, dest)) for dest, what in found]
    if not all(_can_be_placed(model) for model in models):
        return None
    for model, ports in zip(models, endpoint.ports_of(models), strict=True):
        for name, port in zip(model.listeners, ports, strict=True):
            if not 1 <= port <= 65535:
                what = f"port {port} of `{name}` must be between 1 and 65535"
                problems.append(Problem(what, where(model, "port")))
    served = _placed(models, hosts, experiment, source_map, problems)
    stop_grace = experiment.runner.stop_grace or STOP_GRACE
    services: dict[int, list[Service]] = defaultdict(list)
    for one in served:
        for rank, service in one.services(stop_grace):
            services[rank].append(service)
    problems += _service_problems(served, source_map)
    if problems:
        return None
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
            stop_grace=stop_grace,
        ),
        hosts=hosts,
        layout=", ".join(_layout(model) for model in models),
        services={rank: tuple(found) for rank, found in services.items()},
        packages=(endpoint.PACKAGE,) if any(model.has_endpoint for model in models) else (),
        inputs={"models": [inputs_of(model.arguments.values) for model in models]},
        secrets=secrets,
        texts={path: text for model in models for path, text in model.arguments.texts.items()},
        notices=(*notices, *_notices(served, hosts, experiment, secrets)),
    )


def combined_violations(model: Model) -> Iterator[Violation]:
    """Yield the arguments, by dest, that cannot be combined with FlagScale's own keys of the model."""
    yield from endpoint.violations(model)
    # With Emu3, the server itself turns guidance on.
    if model.guidance or serves_emu3(model.arguments.values):
        yield from broken_by_guidance(model.arguments)


_PLACING = {"port", "data_parallel_size", *DEGREES}


def _can_be_placed(model: Model) -> bool:
    """Return whether the arguments that decide about devices and ports are known, whatever else is wrong."""
    return model.arguments.is_complete and not _PLACING & model.arguments.unknown.keys()


@dataclass(frozen=True)
class _Served:
    """A model with its instances; the first of its ports is that of its endpoint, if it has one."""

    model: Model
    ports: tuple[int, ...]
    instances: tuple[Instance, ...]

    def services(self, stop_grace: float) -> Iterator[tuple[int, Service]]:
        """Yield (host rank, service) of the endpoint and of each part of the instances."""
        if self.model.has_endpoint:
            yield endpoint.endpoint_of(self.instances, self.ports[0])
        for instance in self.instances:
            yield from services_of(instance, stop_grace)

    def names(self) -> list[str]:
        """Return the names of all its services."""
        return [service.name for _, service in self.services(STOP_GRACE)]

    def listeners(self) -> Iterator[tuple[str, int, int, str]]:
        """Yield (name, host rank, port, where it listens) of each service that answers requests."""
        if self.model.has_endpoint:
            rank = self.instances[0].parts[0].host.rank
            yield self.model.service, rank, self.ports[0], self.model.host
        for one in self.instances:
            yield one.name, one.parts[0].host.rank, one.port, one.host


def _placed(
    models: list[Model],
    hosts: tuple[Host, ...],
    experiment: Experiment,
    source_map: SourceMap,
    problems: list[Problem],
) -> list[_Served]:
    sizes = [
        Size(devices_of(model.arguments.values), model.arguments.values["data_parallel_size"])
        for model in models
        for _ in range(model.instances)
    ]
    try:
        places = place_instances(sizes, hosts)
    except ValueError as error:
        needed, slots = sum(size.devices for size in sizes), sum(host.slots for host in hosts)
        free = f"there {'is' if slots == 1 else 'are'} {count_of(slots, 'slot')}"
        what = f"the models need {count_of(needed, 'device')} in all, and {free}: one model {error}"
        hint = "lower `instances` or the degrees; slots: experiment.runner.nproc_per_node, hostfile"
        problems.append(Problem(what, source_map.where("serve"), hint))
        return []
    idle = {host.rank for host in hosts} - {part.host.rank for parts in places for part in parts}
    if idle and not problems:  # a model that could not be read may be meant for them
        what = f"no model runs on {', '.join(host.name for host in hosts if host.rank in idle)}"
        problems.append(Problem(what, source_map.where("experiment.runner.nnodes"), "lower it"))
    inner = count(experiment.runner.master_port or _INNER_PORT, _PORTS_APART)
    following = iter(zip(sizes, places, strict=True))
    served = []
    for model, ports in zip(models, endpoint.ports_of(models), strict=True):
        placed = list(islice(following, model.instances))
        listening = endpoint.listen_at(model, [parts for _, parts in placed])
        instances = tuple(
            Instance(model, number, size, host, port, next(inner), parts)
            for number, ((size, parts), host, port) in enumerate(
                zip(placed, listening, ports[-model.instances :], strict=True)
            )
        )
        served.append(_Served(model, ports, instances))
    return served


def _service_problems(served: list[_Served], source_map: SourceMap) -> Iterator[Problem]:
    used: dict[tuple[int, int], str] = {}
    names: set[str] = set()
    for one in served:
        where = source_map.where(one.model.arguments.paths.get("port", f"{one.model.path}.port"))
        for name, rank, port, _ in one.listeners():
            if (rank, port) in used:
                yield Problem(f"port {port} of `{name}` is also used by `{used[rank, port]}`", where)
            used[rank, port] = name
        for name in one.names():
            if name in names:
                yield Problem(f"two services would have the name `{name}`", source_map.where(one.model.path))
            names.add(name)


def _cpu_env(services: Mapping[int, list[Service]], hosts: tuple[Host, ...]) -> dict[str, str]:
    """Return the environment that keeps several engines on one host's processors off the same cores."""
    crowded = any(
        sum(not service.entrypoint for service in services.get(host.rank, ())) > 1
        and platforms.find(host.platform).is_host_processor
        for host in hosts
    )
    return {"VLLM_CPU_OMP_THREADS_BIND": "nobind"} if crowded else {}


def _layout(model: Model) -> str:
    values = model.arguments.values
    degrees = {"TP": "tensor_parallel_size", "PP": "pipeline_parallel_size", "DP": "data_parallel_size"}
    parts = [f"{short}{values[name]}" for short, name in degrees.items() if values[name] > 1]
    times = f"{model.instances} x " if model.instances > 1 else ""
    guided = ["with guidance"] if model.guidance else []
    return f"{times}{' '.join([served_name(model), *parts, *guided])}"


def _notices(
    served: list[_Served], hosts: tuple[Host, ...], experiment: Experiment, secrets: Mapping[str, str]
) -> Iterator[str]:
    listeners = [(one.model, name, host) for one in served for name, _, _, host in one.listeners()]
    local = [
        name
        for model, name, host in listeners
        if host in LOCAL_NAMES and (not model.has_endpoint or name == model.service)
    ]
    reached = [name for _, name, host in listeners if host not in LOCAL_NAMES]
    if local and len(hosts) > 1:
        yield f"{', '.join(local)}: answers only on its host's loopback address; set `host` to change that"
    if reached and not secrets.get("VLLM_API_KEY") and not experiment.envs.common().get("VLLM_API_KEY"):
        yield f"{', '.join(reached)}: answers everyone who can reach it; set `api_key_file` to require a key"
