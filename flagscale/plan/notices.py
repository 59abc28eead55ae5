"""Notices about settings that are valid but may not do what their author expects; none is a mistake."""

from __future__ import annotations

import re
from collections.abc import Iterator

from flagscale.config.schema import Experiment, Runner
from flagscale.config.secrets import is_secret
from flagscale.config.source_map import SourceMap
from flagscale.values import Job

_SHELL = re.compile(r"\$(?P<name>[A-Za-z_]\w*)|\$\{(?P<braced>[A-Za-z_]\w*)\}|\$\(|`|(?:^|:)~(?=/|$)")
"""What a shell would expand in a value: `$NAME`, `${NAME}`, `$(...)`, backquotes, `~/`."""
_FOR_OTHER_HOSTS = ("ssh_port", "connect_timeout", "transport", "no_shared_fs")
"""Keys of `experiment.runner` about hosts other than this one."""


def setting_notices(experiment: Experiment, job: Job, source_map: SourceMap) -> Iterator[str]:
    """Yield a notice per setting that has no effect in this job, or that looks like shell code."""
    yield from _unused_names(experiment, job, source_map)
    if not experiment.runner.hostfile and all(host.is_localhost for host in job.hosts):
        for key in _FOR_OTHER_HOSTS:
            if getattr(experiment.runner, key) != Runner.model_fields[key].default:
                why = "without a hostfile the job runs on this host, which is reached directly"
                yield f"{source_map.where(f'experiment.runner.{key}')}: has no effect here: {why}"
    if experiment.runner.start_method:
        why = "torchrun starts a program, not a function"
        yield f"{source_map.where('experiment.runner.start_method')}: has no effect: {why}"
    if job.own_roles and experiment.runner.master_addr:
        why = "with per_node_task the ranks of a host meet on that host"
        yield f"{source_map.where('experiment.runner.master_addr')}: has no effect: {why}"
    envs = experiment.envs
    sections = {
        "": envs.common(),
        **{f"node_specific.{name}.": own for name, own in envs.node_specific.items()},
    }
    sections |= {f"device_type_specific.{name}.": own for name, own in envs.device_type_specific.items()}
    for section, values in sections.items():
        for name, value in values.items():
            if (found := _SHELL.search(value)) and not is_secret(name):
                yield f"{source_map.where(f'experiment.envs.{section}{name}')}: {_not_expanded(name, found)}"


def _not_expanded(name: str, found: re.Match[str]) -> str:
    """Return what happens to shell code in a value, and what its author can write instead."""
    code = found[0].removeprefix(":")
    variable = found["name"] or found["braced"] or ("HOME" if code == "~" else "")
    shown = f"`{code}`" if variable else "a command in the value"
    what = f"{shown} is passed on as it is, because no shell reads this value"
    export = f"write `export {name}=...` in experiment.cmds.before_start"
    on_hosts = f"to let each host expand it, remove the key and {export}"
    if not variable:
        return f"{what}; {on_hosts}"
    return f"{what}; for the value on this machine write `${{oc.env:{variable}}}`; {on_hosts}"


def _unused_names(experiment: Experiment, job: Job, source_map: SourceMap) -> Iterator[str]:
    """Yield a notice per key for a host or type that the job does not have; a file may serve several jobs."""
    hosts, types = {host.name for host in job.hosts}, {host.platform for host in job.hosts}
    for key, given, known in (
        ("runner.host_paths", experiment.runner.host_paths, hosts),
        ("envs.node_specific", experiment.envs.node_specific, hosts),
        ("envs.device_type_specific", experiment.envs.device_type_specific, types),
    ):
        for name in given:
            if name not in known:
                yield f"{source_map.where(f'experiment.{key}')}: this job has no `{name}`"
