"""The devices of a service, among those that its host makes visible."""

from __future__ import annotations

import os

from flagscale import platforms
from flagscale.values import Host, Service


def device_environment(service: Service, host: Host) -> dict[str, str]:
    """Return the environment that limits a service to its devices, by index among those visible on this host.

    Raises:
        OSError: fewer devices are visible than planned for the job.
    """
    variable = platforms.find(host.platform).visible_devices
    if not service.devices or not variable:
        return {}
    given = os.environ.get(variable)
    visible = given.split(",") if given else [str(number) for number in range(host.slots)]
    if max(service.devices) >= len(visible):
        raise OSError(f"{variable}={given} makes {len(visible)} devices visible, not {host.slots}")
    return {variable: ",".join(visible[number] for number in service.devices)}
