"""An instance of a served model as programs: one that answers clients, and its parts on other hosts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from flagscale import platforms
from flagscale.engines.vllm_models import Model
from flagscale.engines.vllm_placement import Part, Size
from flagscale.job import Host, Program, address_of

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


def programs_of(instance: Instance) -> Iterator[tuple[int, Program]]:
    """Yield (host rank, program) of each part: the first one answers clients, the others do as it says."""
    argv, several = instance.model.arguments.argv, len(instance.parts) > 1
    for number, part in enumerate(instance.parts):
        words = [*argv, *_port(instance)]
        if number:
            words = [*_without_servers(argv), *_headless(instance, number)]
        yield (
            part.host.rank,
            Program(
                name=f"{instance.name}.part{number}" if number else instance.name,
                argv=(*words, *(_meeting(instance, number) if several else ())),
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


def _meeting(instance: Instance, number: int) -> tuple[str, ...]:
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
    """The devices of a program that does not have all of its host's, by their places there."""
    if not platforms.find(part.host.platform).visible_devices or part.devices == part.host.slots:
        return ()
    return tuple(range(part.first, part.first + part.devices))
