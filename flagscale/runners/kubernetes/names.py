"""What Kubernetes accepts as names, labels and quantities, checked here because it reports
mistakes only when a manifest is applied.

Sources: kubernetes.io/docs/concepts/overview/working-with-objects (names, labels) and the quantities of
apimachinery's `pkg/api/resource`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from flagscale.config.schema import KubernetesPods
from flagscale.errors import Problem
from flagscale.plan.runner import Where

KEY = "experiment.runner.kubernetes"
REPLICATED_JOB = "hosts"
"""The name of the JobSet's only group of pods."""

_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
"""An RFC 1035 label, which JobSet requires of all names that it makes."""
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_QUALIFIED = re.compile(rf"({_SUBDOMAIN.pattern}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_QUANTITY = re.compile(r"(\d+(\.\d*)?|\.\d+)(m|k|[MGTPE]|[KMGTPE]i|[eE][-+]?\d+)?")
_LONGEST = 63


def jobset_name(experiment: str) -> str:
    """Return the name of an experiment as DNS takes it; "" if nothing is left of it."""
    return re.sub(r"[^a-z0-9]+", "-", experiment.lower()).lstrip("-0123456789").rstrip("-")


def host_name(jobset: str, rank: int) -> str:
    """Return the name under which the pods of a JobSet reach the one with this rank."""
    return f"{jobset}-{REPLICATED_JOB}-0-{rank}.{jobset}"


def name_problems(name: str, hosts: int, where: Where) -> Iterator[Problem]:
    """Yield what is wrong with the name of a JobSet."""
    place, hint = where(f"{KEY}.name"), f"set {KEY}.name"
    longest = f"{name}-{REPLICATED_JOB}-0-{hosts - 1}-abcde"
    if not _LABEL.fullmatch(name):
        what = f"`{name}` cannot name a JobSet: use small letters, digits and `-`, and begin with a letter"
        yield Problem(what, place, hint)
    elif len(longest) > _LONGEST:
        most = len(name) - (len(longest) - _LONGEST)
        what = f"`{name}` is too long for the names of its pods: {len(name)} characters, {most} at most"
        yield Problem(what, place, hint)


def key_problems(pods: KubernetesPods, where: Where) -> Iterator[Problem]:
    """Yield what is wrong with the keys of the pods, whatever the job is."""
    if pods.image is None:
        yield Problem("`image` is required for output=manifest", where(f"{KEY}.image"), f"set {KEY}.image")
    if pods.namespace and (not _LABEL.fullmatch(pods.namespace) or len(pods.namespace) > _LONGEST):
        yield Problem(f"`{pods.namespace}` cannot name a namespace", where(f"{KEY}.namespace"))
    objects: dict[str, list[str | None]] = {
        "service_account": [pods.service_account],
        "secrets_from": [pods.secrets_from],
        "image_pull_secrets": [*pods.image_pull_secrets],
        "volumes": [volume.claim for volume in pods.volumes],
    }
    for key, names in objects.items():
        for name in names:
            if name and not (_SUBDOMAIN.fullmatch(name) and len(name) <= 253):
                yield Problem(f"`{name}` cannot name an object in Kubernetes", where(f"{KEY}.{key}"))
    quantities = {f"resources.{name}": amount for name, amount in pods.resources.items()}
    if pods.shared_memory is not None:
        quantities["shared_memory"] = pods.shared_memory
    for key, amount in quantities.items():
        if not _QUANTITY.fullmatch(amount):
            hint = "a number with a unit, such as 8, 500m, 200Gi"
            yield Problem(f"`{amount}` is not a quantity of Kubernetes", where(f"{KEY}.{key}"), hint)
    for name in pods.resources:
        if not _QUALIFIED.fullmatch(name):
            yield Problem(f"`{name}` cannot name a resource", where(f"{KEY}.resources.{name}"))
    for label, value in pods.node_selector.items():
        if not _QUALIFIED.fullmatch(label) or not _LABEL_VALUE.fullmatch(value):
            yield Problem(f"`{label}: {value}` cannot be a label", where(f"{KEY}.node_selector.{label}"))
    yield from _path_problems(pods, where)


def _path_problems(pods: KubernetesPods, where: Where) -> Iterator[Problem]:
    seen: set[PurePosixPath] = set()
    for index, volume in enumerate(pods.volumes):
        path, place = PurePosixPath(volume.path), where(f"{KEY}.volumes.{index}.path")
        if not path.is_absolute() or ".." in path.parts or ":" in volume.path:
            yield Problem(f"a volume needs an absolute path in the pods, not `{volume.path}`", place)
        elif path in seen:
            yield Problem(f"two volumes have the path `{path}`", place)
        elif path == PurePosixPath("/dev/shm") and pods.shared_memory:
            yield Problem("`shared_memory` and a volume both have the path /dev/shm", place)
        seen.add(path)
