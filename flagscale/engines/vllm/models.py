"""The models that a `serve` group names (one, or several below `models`), and their instances as services."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from flagscale import platforms
from flagscale.config.catalog import Catalog
from flagscale.config.engine_args import EngineArguments, FlatKey, render
from flagscale.config.source_map import SourceMap
from flagscale.engines.vllm.arguments import KEY_FILE, SECRETS, flat, take_secrets
from flagscale.engines.vllm.emu3_model import serves_emu3
from flagscale.engines.vllm.placement import Part, Size
from flagscale.engines.vllm.refused import refuse
from flagscale.errors import Problem
from flagscale.values import Service, address_of

LOOPBACK = "127.0.0.1"
_OPEN_HOSTS = ("0.0.0.0", "::", "")
_OWN = ("models", "instances", "endpoint", "guidance", KEY_FILE)
"""The keys of a `serve` group that are not vLLM's."""


@dataclass(frozen=True)
class Model:
    """A model to serve: its name below `models` ("" if there is only one), and its number of instances."""

    name: str
    path: str
    """The key path of its group, for messages."""
    arguments: EngineArguments
    instances: int
    has_endpoint: bool = False
    """Whether clients reach its instances at one address."""
    guidance: bool = False
    """Whether requests may ask for guidance."""

    @property
    def service(self) -> str:
        """The name of its only service, or of the one before its instances."""
        return self.name or "server"

    def instance_name(self, number: int) -> str:
        """Return the name of an instance, by its number from 0."""
        return f"{self.service}.{number}" if self.instances > 1 else self.service

    @property
    def listeners(self) -> list[str]:
        """The names of its services that answer requests: its endpoint first, if it has one."""
        names = [self.instance_name(number) for number in range(self.instances)]
        return [self.service, *names] if self.has_endpoint else names

    @property
    def host(self) -> str:
        """Where clients reach it, as configured."""
        return str(self.arguments.values["host"] or "")


def read_models(
    group: str, raw: Mapping[str, Any], catalog: Catalog, source_map: SourceMap, problems: list[Problem]
) -> tuple[list[Model], dict[str, str]]:
    """Return the models, in the order written, and the secrets as environment variables."""
    beside = {key: value for key, value in raw.items() if key != "models"}
    shared, secrets = take_secrets(flat(group, beside, catalog, source_map, problems), source_map, problems)
    if "models" not in raw:
        return [_model("", group, shared, catalog, source_map, problems)], secrets
    named = raw["models"]
    if not isinstance(named, Mapping) or not named:
        problems.append(
            Problem("a mapping of names to models is expected here", source_map.where(f"{group}.models"))
        )
        return [], secrets
    models = []
    for index, (key, keys) in enumerate(named.items()):
        name, path = str(key), f"{group}.models.{key}"
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            what = f"`{name}` is not a valid model name: use letters, digits, `.`, `_` and `-`"
            problems.append(Problem(what, source_map.where(path)))
        elif not isinstance(keys, Mapping):
            problems.append(Problem("the keys of a model are expected here", source_map.where(path)))
        else:
            own = flat(path, keys, catalog, source_map, problems)
            for flat_key in (flat_key for flat_key in own if flat_key.name in (*SECRETS, KEY_FILE)):
                what = f"`{flat_key.name}` applies to all models: give it beside `models`"
                problems.append(Problem(what, source_map.where(flat_key.path)))
            # The port beside `models` is the first one's; the others count on from it.
            given = {flat_key.name for flat_key in own} | ({"port"} if index else set())
            flat_keys = [*own, *(flat_key for flat_key in shared if flat_key.name not in given)]
            models.append(_model(name, path, flat_keys, catalog, source_map, problems))
    return models, secrets


def _model(
    name: str,
    path: str,
    flat_keys: list[FlatKey],
    catalog: Catalog,
    source_map: SourceMap,
    problems: list[Problem],
) -> Model:
    instances = 1
    switches = {"endpoint": True, "guidance": False}
    kept = []
    for flat_key in refuse(flat_keys, source_map, problems):
        value, where = flat_key.value, source_map.where(flat_key.path)
        if flat_key.name == "instances":
            if type(value) is int and value > 0:
                instances = value
            else:
                what = f"`instances` takes a whole number of at least 1, not {value!r}"
                problems.append(Problem(what, where))
        elif flat_key.name in switches:
            if type(value) is bool:
                switches[flat_key.name] = value
            else:
                problems.append(Problem(f"`{flat_key.name}` takes true or false, not {value!r}", where))
        else:
            kept.append(flat_key)
    defaults = {"host": LOOPBACK, **({"served_model_name": name} if name else {})}
    given = {flat_key.name for flat_key in kept if flat_key.value is not None}
    kept += [FlatKey(key, value, f"{path}.{key}") for key, value in defaults.items() if key not in given]
    arguments = render(kept, catalog, source_map, problems, own=_OWN)
    has_endpoint = switches["endpoint"] and instances > 1
    if "model" in arguments.paths and serves_emu3(arguments.values):
        for flat_key in (one for one in flat_keys if one.name == "guidance" and one.value is False):
            what = "Emu3 always draws with guidance; a request is drawn without it at `guidance_scale: 1`"
            problems.append(Problem(what, source_map.where(flat_key.path), "remove the key"))
    return Model(name, path, arguments, instances, has_endpoint, switches["guidance"])


@dataclass(frozen=True)
class Instance:
    """One server: the model it serves, its place, and its ports."""

    model: Model
    number: int
    size: Size
    host: str
    """Where it listens, as vLLM takes it; an address that is known only at launch is a placeholder."""
    port: int
    inner_port: int
    """The port by which its parts on several hosts find each other."""
    parts: tuple[Part, ...]

    @property
    def name(self) -> str:
        return self.model.instance_name(self.number)

    @property
    def url(self) -> str:
        return url_of(self.model, self.host, self.port, self.parts[0].host.rank)


def services_of(instance: Instance, stop_grace: float) -> Iterator[tuple[int, Service]]:
    """Yield (host rank, service) of each part: the first one answers clients and directs the others.

    On a stop, begun requests have `stop_grace` seconds.
    """
    model, several = instance.model, len(instance.parts) > 1
    argv = (*model.arguments.argv, *(("--guidance",) if model.guidance else ()))
    # Without it, SIGTERM ends the requests that the server has begun.
    draining = ("--shutdown-timeout", str(ceil(stop_grace)))
    for number, part in enumerate(instance.parts):
        words = [*argv, *_port(instance)]
        if number:
            words = [*_without(argv, "--api-server-count"), *_headless(instance, number)]
        elif model.has_endpoint:
            place = ("--host", instance.host, "--port", str(instance.port))
            words = [*_without(argv, "--host", "--port"), *place]
        yield (
            part.host.rank,
            Service(
                name=f"{instance.name}.part{number}" if number else instance.name,
                argv=(*words, *(_rendezvous(instance, number) if several else ()), *draining),
                url="" if number else instance.url,
                model=served_name(model),
                # vLLM would guess it from the route to the internet, which a cluster may not have.
                env={"VLLM_HOST_IP": address_of(part.host.rank)} if several else {},
                devices=_devices(part),
                ports=(instance.inner_port,) if several and not number else (),
                behind=instance.name if number else model.service if model.has_endpoint else "",
            ),
        )


def served_name(model: Model) -> str:
    """Return the model's name for clients."""
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


def _without(argv: tuple[str, ...], *options: str) -> list[str]:
    """Return the words without options that have one value."""
    words = list(argv)
    for option in options:
        if option in words:
            at = words.index(option)
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


def url_of(model: Model, host: str, port: int, rank: int) -> str:
    """Return the URL of a server of the model that listens at `host` on the host of this rank."""
    address = address_of(rank) if host in _OPEN_HOSTS else host
    scheme = "https" if model.arguments.values.get("ssl_certfile") else "http"
    return f"{scheme}://{f'[{address}]' if address.count(':') > 1 else address}:{port}"


def _devices(part: Part) -> tuple[int, ...]:
    """Return a service's devices, as indices into its host's; empty if it may use all of them."""
    if not platforms.find(part.host.platform).visible_devices or part.devices == part.host.slots:
        return ()
    return tuple(range(part.first, part.first + part.devices))
