"""An instance of a served model as services: one that answers clients, and its parts on other hosts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flagscale import platforms
from flagscale.checks.model_folder import inputs_of
from flagscale.config.schema import Experiment
from flagscale.config.source_map import SourceMap
from flagscale.engines.vllm.arguments import devices_of, remarks, violations
from flagscale.engines.vllm.catalog import vllm_catalog
from flagscale.engines.vllm.models import Model, first_ports, read_models
from flagscale.engines.vllm.placement import Part, Size, place_instances
from flagscale.errors import Problem
from flagscale.values import LOCAL_NAMES, Host, Job, Role, Service, address_of

_OPEN_HOSTS = ("0.0.0.0", "::", "")


@dataclass(frozen=True)
class Instance:
    """One server: the model it serves, its place, and its ports."""

    model: Model
    number: int
    size: Size
    port: int
    inner_port: int
    """By which its parts on several hosts find each other."""
    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        base = self.model.name or "server"
        return f"{base}.{self.number}" if self.model.instances > 1 else base

    @property
    def is_open(self) -> bool:
        """Whether it listens on every address of its host."""
        return str(self.model.arguments.values["host"] or "") in _OPEN_HOSTS


def services_of(instance: Instance) -> Iterator[tuple[int, Service]]:
    """Yield (host rank, service) of each part: the first one answers clients, the others do as it says."""
    argv, several = instance.model.arguments.argv, len(instance.parts) > 1
    for number, part in enumerate(instance.parts):
        words = [*argv, *_port(instance)]
        if number:
            words = [*_without_servers(argv), *_headless(instance, number)]
        yield (
            part.host.rank,
            Service(
                name=f"{instance.name}.part{number}" if number else instance.name,
                argv=(*words, *(_rendezvous(instance, number) if several else ())),
                url="" if number else _url(instance, part.host),
                model=served_name(instance.model),
                # vLLM would guess it, by a way to the internet that a cluster need not have.
                env={"VLLM_HOST_IP": address_of(part.host.rank)} if several else {},
                devices=_devices(part),
                ports=(instance.inner_port,) if several and not number else (),
            ),
        )


def served_name(model: Model) -> str:
    """Return what clients call the model."""
    values = model.arguments.values
    names = values.get("served_model_name")
    return str(names[0] if names else values["model"])


def _port(instance: Instance) -> tuple[str, ...]:
    given = "port" in instance.model.arguments.paths and instance.number == 0
    return () if given else ("--port", str(instance.port))


def _headless(instance: Instance, number: int) -> list[str]:
    if instance.size.data == 1:
        return ["--headless"]
    local = instance.parts[number].devices // instance.size.tensor_pipeline
    return ["--headless", "--data-parallel-start-rank", str(local * number)]


def _without_servers(argv: tuple[str, ...]) -> list[str]:
    """Return the words for a part that answers no client: how many servers there are is not its business."""
    words = list(argv)
    if "--api-server-count" in words:
        at = words.index("--api-server-count")
        del words[at : at + 2]
    return words


def _rendezvous(instance: Instance, number: int) -> tuple[str, ...]:
    """Return the words by which the parts of an instance find each other."""
    address, port = address_of(instance.parts[0].host.rank), str(instance.inner_port)
    if instance.size.data == 1:
        place = ("--nnodes", str(len(instance.parts)), "--node-rank", str(number))
        return (*place, "--master-addr", address, "--master-port", port)
    local = instance.parts[number].devices // instance.size.tensor_pipeline
    meet = ("--data-parallel-address", address, "--data-parallel-rpc-port", port)
    return ("--data-parallel-size-local", str(local), *meet)


def _url(instance: Instance, host: Host) -> str:
    values = instance.model.arguments.values
    address = address_of(host.rank) if instance.is_open else str(values["host"])
    scheme = "https" if values.get("ssl_certfile") else "http"
    return f"{scheme}://{f'[{address}]' if address.count(':') > 1 else address}:{instance.port}"


def _devices(part: Part) -> tuple[int, ...]:
    """The devices of a service that does not have all of its host's, by their places there."""
    if not platforms.find(part.host.platform).visible_devices or part.devices == part.host.slots:
        return ()
    return tuple(range(part.first, part.first + part.devices))


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
    group: str, raw: Mapping[str, Any], source_map: SourceMap, problems: list[Problem]
) -> tuple[list[Model], dict[str, str]]:
    """Return the models and secrets of the task group; see `vllm_models.read_models`."""
    return read_models(group, raw, vllm_catalog().server, source_map, problems)


def job(
    experiment: Experiment, hosts: tuple[Host, ...], source_map: SourceMap, problems: list[Problem]
) -> Job | None:
    """Return the job; None where `problems` says why not."""
    models, secrets = read("serve", experiment.arguments, source_map, problems)
    if problems:
        return None

    def where(model: Model, dest: str) -> str:
        return source_map.where(model.arguments.paths.get(dest, f"{model.path}.{dest}"))

    on_host = platforms.find(hosts[0].platform).is_host_processor
    for model in models:
        for dest, what in violations(model.arguments.values, on_host, model.arguments.paths):
            problems.append(Problem(what, where(model, dest)))
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
            env={**ENV, **_cpu_env(services, hosts)},
            stop_grace=experiment.runner.stop_grace or STOP_GRACE,
        ),
        hosts=hosts,
        layout=", ".join(_layout(model) for model in models),
        services={rank: tuple(found) for rank, found in services.items()},
        inputs={"models": [inputs_of(model.arguments.values) for model in models]},
        secrets=secrets,
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
        what = f"the models do not fit the hosts: one {error}"
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
    taken: dict[tuple[int, int], str] = {}
    names: set[str] = set()
    for one in instances:
        place = (one.parts[0].host.rank, one.port)
        where = source_map.where(one.model.arguments.paths.get("port", f"{one.model.path}.port"))
        if not 1 <= one.port <= 65535:
            yield Problem(f"there is no port {one.port}", where)
        elif place in taken:
            yield Problem(f"port {one.port} of `{one.name}` is that of `{taken[place]}` too", where)
        taken[place] = one.name
        if one.name in names:
            yield Problem(f"two servers would be called `{one.name}`", source_map.where(one.model.path))
        names.add(one.name)


def _cpu_env(services: Mapping[int, list[Service]], hosts: tuple[Host, ...]) -> dict[str, str]:
    """Several engines on the processors of one host must not all take the same cores."""
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
        yield f"{', '.join(local)}: answers on its own host's loopback address only; `host` says where else"
    if reached and not secrets.get("VLLM_API_KEY") and not experiment.envs.common().get("VLLM_API_KEY"):
        yield f"{', '.join(reached)}: answers anybody who reaches it; `api_key_file` asks clients for a key"
