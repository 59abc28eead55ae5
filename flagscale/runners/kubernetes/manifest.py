"""Write the manifest of a job: its plan as it is, then as each pod will plan it by `type: cloud`."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict

from flagscale import platforms
from flagscale.config.command import Request
from flagscale.config.schema import Runner
from flagscale.config.secrets import is_secret, masks
from flagscale.errors import Problem, UserError
from flagscale.plan.prepare import Prepared, config_text, prepare
from flagscale.plan.runner import Where
from flagscale.runners.kubernetes.jobset import PodSet, objects
from flagscale.runners.kubernetes.names import KEY, host_name, jobset_name, key_problems, name_problems
from flagscale.values import DEFAULT_PORT

_OF_THE_START = (
    *("hostfile", "include", "exclude", "options", "slurm", "max_restarts", "node_rank", "master_addr"),
    *("ssh_port", "transport", "connect_timeout"),
)
"""Keys of `experiment.runner` that a pod does not need: they say where and how others start the job."""
_SET_PER_POD = ("nnodes", "node_rank", "master_addr", "master_port", "kubernetes")
"""Keys that a pod's own environment holds, or that only this command reads."""


def manifest_text(request: Request) -> str:
    """Return the manifest of a job as YAML for `kubectl apply -f -`.

    Raises:
        UserError: the configuration has mistakes, or is one that equal pods cannot run.
    """
    where = request.source_map.where
    planned = prepare(_changed(request, _plannable), run_id="dryrun", only_plans=True, any_hosts=True)
    pods, hosts = planned.experiment.runner.kubernetes, planned.plan.hosts
    name = pods.name or jobset_name(planned.experiment.name)
    problems = [
        *name_problems(name, len(hosts), where),
        *key_problems(pods, where),
        *_unequal(planned, where),
        *_folder_problems(planned, where),
        *_device_problems(planned, where),
    ]
    secrets = _variables(masks(yaml.safe_load(planned.config), ""))
    inherited = _inherited(planned)
    if (secrets or inherited) and not pods.secrets_from:
        names = ", ".join(dict.fromkeys((*secrets.values(), *inherited)))
        hint = f"create a Secret with the keys {names}, and set {KEY}.secrets_from to its name"
        problems.append(Problem("a manifest holds no secrets", where(f"{KEY}.secrets_from"), hint))
    if problems:
        raise UserError(problems)

    def as_pod(runner: dict[Any, Any]) -> None:
        _plannable(runner)
        for key in _OF_THE_START:
            runner.pop(key, None)
        several = {"node_rank": 0, "master_addr": host_name(name, 0)} if len(hosts) > 1 else {}
        at_pod = {"nnodes": len(hosts), "nproc_per_node": hosts[0].slots, "platform": hosts[0].platform}
        runner.update({"type": "cloud", **at_pod, **several})

    of_pod = prepare(_changed(request, as_pod), run_id="dryrun", only_plans=True)
    for notice in dict.fromkeys((*planned.notices, *of_pod.notices)):
        print(f"note: {notice}", file=sys.stderr)
    job = PodSet(
        name=name,
        hosts=len(hosts),
        port=planned.experiment.runner.master_port or DEFAULT_PORT,
        devices=_devices(planned),
        config=_config_of(of_pod),
        secrets=secrets,
        inherited=inherited,
        stop_grace=max(node.stop_grace for node in of_pod.plan.nodes),
        max_restarts=planned.experiment.runner.max_restarts,
    )
    return yaml.dump_all(
        objects(job, pods), Dumper=_Dumper, sort_keys=False, allow_unicode=True, explicit_start=True
    )


def _changed(request: Request, change: Callable[[dict[Any, Any]], None]) -> Request:
    """Return the request with `experiment.runner` changed, as plain values, by a function."""
    config: DictConfig = copy.deepcopy(request.config)
    experiment = config.get("experiment")
    runner = experiment.get("runner", {}) if isinstance(experiment, DictConfig) else None
    plain = OmegaConf.to_container(runner) if isinstance(runner, DictConfig) else runner
    if not isinstance(plain, dict):
        return request  # a mistake that `prepare` reports
    change(plain)
    with open_dict(config):
        config.experiment.runner = plain
    return replace(request, config=config)


def _plannable(runner: dict[Any, Any]) -> None:
    """Plan all hosts of a job that a platform starts one by one, without one's rank."""
    if runner.get("type") == "cloud":
        runner["type"] = "ssh"
        for key in ("node_rank", "master_addr"):
            runner.pop(key, None)


def _unequal(planned: Prepared, where: Where) -> Iterator[Problem]:
    hosts = planned.plan.hosts
    kinds = dict.fromkeys((host.slots, host.platform) for host in hosts)
    if len(kinds) > 1:
        found = ", ".join(f"{slots} of {platform}" for slots, platform in kinds)
        what = f"the hosts differ in ranks or type ({found}), but each pod plans for hosts like its own"
        yield Problem(what, where("experiment.runner.hostfile"), "use equal hosts, or type: ssh or slurm")


def _folder_problems(planned: Prepared, where: Where) -> Iterator[Problem]:
    exp_dir = PurePosixPath(planned.experiment.exp_dir)
    volumes = planned.experiment.runner.kubernetes.volumes
    at = [volume for volume in volumes if exp_dir.is_relative_to(volume.path)]
    if not at:
        what = f"the run directory {exp_dir} is on no volume, so it would be lost with its pods"
        yield Problem(what, where("experiment.exp_dir"), f"add a volume to {KEY}.volumes, or move exp_dir")
    elif max(at, key=lambda volume: len(PurePosixPath(volume.path).parts)).read_only:
        yield Problem(
            f"the run directory {exp_dir} is on a volume that is read_only", where(f"{KEY}.volumes")
        )


def _devices(planned: Prepared) -> dict[str, str]:
    """Return the quantities of devices per pod: one per rank, by the resource that counts them."""
    host = planned.plan.hosts[0]
    resource = platforms.find(host.platform).kubernetes_resource
    return {resource: str(host.slots)} if resource else {}


def _device_problems(planned: Prepared, where: Where) -> Iterator[Problem]:
    resources = planned.experiment.runner.kubernetes.resources
    platform, devices = platforms.find(planned.plan.hosts[0].platform), _devices(planned)
    for resource, count in devices.items():
        if resources.get(resource, count) != count:
            what = f"a host has {count} ranks, so its pod needs as many devices, not {resources[resource]}"
            yield Problem(what, where(f"{KEY}.resources.{resource}"), "remove it: it follows from the ranks")
    if not devices and not platform.shares_devices and not any("/" in resource for resource in resources):
        what = f"the name under which Kubernetes counts devices of {platform.name} is unknown"
        yield Problem(what, where(f"{KEY}.resources"), f"add the devices to {KEY}.resources")


def _config_of(of_pod: Prepared) -> str:
    """Return the configuration of every pod: without what its own environment says."""
    fields = Runner.model_fields
    defaults = {key: fields[key].get_default(call_default_factory=True) for key in _SET_PER_POD}
    runner = of_pod.experiment.runner.model_copy(update=defaults)
    return config_text(of_pod.experiment.model_copy(update={"runner": runner}), of_pod.job.texts)


def _variables(paths: Iterator[str]) -> Mapping[str, str]:
    """Return, by key path of a secret, the environment variable that holds it."""
    known = [path.removeprefix(".") for path in paths]
    short = [path.rpartition(".")[2].upper().replace("-", "_") for path in known]
    return {
        path: name if short.count(name) == 1 else path.upper().replace(".", "_").replace("-", "_")
        for path, name in zip(known, short, strict=True)
    }


def _inherited(planned: Prepared) -> tuple[str, ...]:
    """Return the secrets of the job that come from a login on this host, not from its configuration."""
    experiment = planned.experiment
    given = {*_secret_values(experiment.envs.common()), *_secret_values(experiment.arguments)}
    return tuple(name for name, value in planned.job.secrets.items() if value not in given)


def _secret_values(tree: Mapping[str, Any]) -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _secret_values(value)
        elif is_secret(str(key)):
            yield from map(str, value if isinstance(value, list | tuple) else [value])


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and values that occur twice twice. Readers of YAML differ in
    what is a number or a switch, so only texts that are certainly neither are written without quotes.
    """

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = "|" if "\n" in text else None if re.match(r"[A-Za-z/-][A-Za-z]", text) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
