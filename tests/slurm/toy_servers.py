"""An engine whose job is one server per host, which answers like vLLM's and serves nothing."""

from __future__ import annotations

from flagscale.config.schema import Experiment
from flagscale.config.source_map import SourceMap
from flagscale.engines.base import Engine
from flagscale.values import Host, Job, Role, Service, address_of
from flagscale_testing.jobs.plans import SERVER


def build(experiment: Experiment, hosts: tuple[Host, ...], source_map: SourceMap) -> Job:
    port = experiment.arguments["port"]
    return Job(
        name=experiment.name,
        task_type="inference",
        engine="toy",
        engine_version="1.0",
        role=Role("inference", str(SERVER), ()),
        hosts=hosts,
        layout="one server per host",
        services={
            host.rank: (
                Service(
                    name=f"server.{host.rank}",
                    argv=(str(port), f"bind:{address_of(host.rank)}"),
                    url=f"http://{address_of(host.rank)}:{port}",
                    model="m",
                ),
            )
            for host in hosts
        },
    )


ENGINE = Engine("toy", ("inference",), ("toy-queue",), build, lambda task, arguments, source_map: [])
