"""Arguments of torchrun that depend on more than their own value: the chip, the installed packages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points

from flagscale import platforms
from flagscale.config.schema import Runner
from flagscale.errors import nearest
from flagscale.platforms.nvidia import NVIDIA
from flagscale.values import Host

_LOGS_SPECS = "torchrun.logs_specs"


def torchrun_violations(runner: Runner, hosts: Sequence[Host]) -> Iterator[tuple[str, str, str]]:
    """Yield (key of `experiment.runner`, what is wrong, how to fix it) for each argument that would fail."""
    without_cuda = [
        name
        for name in sorted({host.platform for host in hosts})
        if platforms.find(name).visible_devices != NVIDIA.visible_devices  # the one that torchrun knows
    ]
    for key, given in (
        ("numa_binding", runner.numa_binding),
        ("virtual_local_rank", runner.virtual_local_rank),
    ):
        if given and without_cuda:
            names = ", ".join(f"`{name}`" for name in without_cuda)
            yield key, f"`{key}` needs CUDA, which {names} does not have", "remove the key"
    if runner.logs_specs is not None:
        known = entry_points(group=_LOGS_SPECS).names
        if runner.logs_specs not in known:
            what = f"no installed package has the entry point `{runner.logs_specs}` in `{_LOGS_SPECS}`"
            hint = nearest(runner.logs_specs, known) or "install the package, or remove the key"
            yield "logs_specs", what, hint
