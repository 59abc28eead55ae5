"""The engine for the queue's test: one process that runs until a file appears."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from flagscale.config.schema import Experiment
from flagscale.config.source_map import SourceMap
from flagscale.engines.base import Engine
from flagscale.values import Host, Job, Role, Service


def build(experiment: Experiment, hosts: tuple[Host, ...], source_map: SourceMap) -> Job:
    service = Service("toy", (str(experiment.arguments["until"]),))
    return Job(
        name=experiment.name,
        task_type="inference",
        engine="toy",
        engine_version="1.0",
        role=Role("inference", "toy_engine", ()),
        hosts=hosts,
        layout="one process",
        services={host.rank: (service,) for host in hosts},
    )


ENGINE = Engine("toy", ("inference",), ("toy-queue",), build, lambda task, arguments, source_map: [])

if __name__ == "__main__":
    print("the toy job runs", flush=True)
    while not Path(sys.argv[1]).exists():
        time.sleep(0.05)
    print("the toy job found its file", flush=True)
