"""Which test process takes which file when several run beside each other (`make test`); a plugin of pytest.

The files stand in one line. Half of the processes take them from its front, where tests need the cores: real
trainings and engines. The other half take them from its back, where tests mostly wait: jobs on hosts. So
neither kind keeps to itself, and all processes end with the many short files in between.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

_HERE = Path(__file__).parent
_LINE = (
    *("e2e", "worker", "outside", "convert", "tools", "fuzz"),
    *("", "wheel", "farm", "slurm", "node", "hosts"),
)
"""Folders from the front to the back; "" stands for all others."""
_MOST = 8
"""Processes; each may run an engine, which takes some gigabytes."""


def pytest_xdist_auto_num_workers() -> int:
    """Return the number of processes: two per core, because tests wait half of the time."""
    return min(2 * len(os.sched_getaffinity(0)), _MOST)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Line the tests up."""
    items.sort(key=_place)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling:
    config.option.loadscopereorder = False  # it would begin with the files that have the most tests
    return _TwoEnds(config, log)


def _place(item: pytest.Item) -> int:
    folder = item.path.relative_to(_HERE, walk_up=True).parts[0]  # ".." if pytest was given other tests too
    return _LINE.index(folder if folder in _LINE else "")


class _TwoEnds(LoadFileScheduling):
    """Give whole files: the first one to a process of even number, the last one to the others."""

    def _assign_work_unit(self, node: WorkerController) -> None:
        if int(node.gateway.id.removeprefix("gw")) % 2:
            self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
        super()._assign_work_unit(node)
