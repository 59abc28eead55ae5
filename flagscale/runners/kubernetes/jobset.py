"""The objects of a manifest as plain values: a ConfigMap with the configuration, and a JobSet of its pods.

JobSet (`jobset.x-k8s.io/v1alpha2`, github.com/kubernetes-sigs/jobset) makes the headless service by which the
pods find each other. Its only group of pods is one indexed Job: the completion index is the host's rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flagscale.config.schema import KubernetesPods
from flagscale.errors import UserError
from flagscale.runners.kubernetes.names import REPLICATED_JOB, host_name

FOLDER = "/etc/flagscale"
"""Where the pods find the configuration."""
FILE = "experiment"
_MARGIN = 30
"""Seconds, beyond those that ranks have to exit, until Kubernetes kills a pod."""


@dataclass(frozen=True)
class PodSet:
    """What the pods of a job run: all of them the same, on equal hosts."""

    name: str
    hosts: int
    port: int
    """The port at which the ranks meet on the first host."""
    devices: Mapping[str, str]
    """Quantities of devices per pod, by resource."""
    config: str
    """The configuration that each pod runs, as YAML without secrets."""
    secrets: Mapping[str, str]
    """By key path: the environment variable that holds a secret of the configuration."""
    inherited: tuple[str, ...]
    """The environment variables of other secrets."""
    stop_grace: float
    """Seconds that the ranks have to exit."""
    max_restarts: int


def objects(job: PodSet, pods: KubernetesPods) -> list[dict[str, Any]]:
    """Return the objects that `kubectl apply` creates, as plain values."""
    metadata = _given({"name": job.name, "namespace": pods.namespace})
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {f"{FILE}.yaml": job.config},
    }
    job_of_pods = {
        "parallelism": job.hosts,
        "completions": job.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        # Restarting cannot fix a configuration error.
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {
                        "containerName": "flagscale",
                        "operator": "In",
                        "values": [UserError.exit_code],
                    },
                }
            ]
        },
        "template": {"spec": _pod(job, pods)},
    }
    jobset = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "network": {"enableDNSHostnames": True, "subdomain": job.name},
            "failurePolicy": {
                "maxRestarts": job.max_restarts,
                "rules": [
                    {
                        "name": "configuration",
                        "action": "FailJobSet",
                        "onJobFailureReasons": ["PodFailurePolicy"],
                    }
                ],
            },
            "replicatedJobs": [{"name": REPLICATED_JOB, "replicas": 1, "template": {"spec": job_of_pods}}],
        },
    }
    return [config, jobset]


def _pod(job: PodSet, pods: KubernetesPods) -> dict[str, Any]:
    amounts = {**pods.resources, **job.devices}
    mounts = [{"name": "configuration", "mountPath": FOLDER, "readOnly": True}]
    volumes: list[dict[str, Any]] = [{"name": "configuration", "configMap": {"name": job.name}}]
    for claim in dict.fromkeys(volume.claim for volume in pods.volumes):
        name = f"claim-{len(volumes) - 1}"
        volumes.append({"name": name, "persistentVolumeClaim": {"claimName": claim}})
        mounts += [
            _given({"name": name, "mountPath": volume.path, "readOnly": volume.read_only or None})
            for volume in pods.volumes
            if volume.claim == claim
        ]
    if pods.shared_memory is not None:
        volumes.append(
            {
                "name": "shared-memory",
                "emptyDir": {"medium": "Memory", "sizeLimit": pods.shared_memory},
            }
        )
        mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})
    overrides = [f"{path}=${{oc.env:{variable}}}" for path, variable in job.secrets.items()]
    container = {
        "name": "flagscale",
        "image": pods.image,
        "command": [*map(_literal, pods.command)],
        "args": [
            f"--config-path={FOLDER}",
            f"--config-name={FILE}",
            "action=run",
            *map(_literal, overrides),
        ],
        "env": _environment(job, pods),
        # Devices are not divisible, and pods that have what they ask for are evicted last.
        **({"resources": {"requests": amounts, "limits": amounts}} if amounts else {}),
        "volumeMounts": mounts,
    }
    spec = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": math.ceil(job.stop_grace) + _MARGIN,
        "shareProcessNamespace": True,  # so that orphans have a parent which collects them
        "serviceAccountName": pods.service_account,
        "nodeSelector": dict(pods.node_selector) or None,
        "imagePullSecrets": [{"name": name} for name in pods.image_pull_secrets] or None,
        "containers": [container],
        "volumes": volumes,
    }
    return _given(spec)


def _environment(job: PodSet, pods: KubernetesPods) -> list[dict[str, Any]]:
    """Return the variables from which `type: cloud` takes the rank and the first host, and the secrets."""
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    return [
        {"name": "PET_NNODES", "value": str(job.hosts)},
        {"name": "PET_NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": index}}},
        {"name": "PET_MASTER_ADDR", "value": host_name(job.name, 0)},
        {"name": "PET_MASTER_PORT", "value": str(job.port)},
        *(
            {"name": name, "valueFrom": {"secretKeyRef": {"name": pods.secrets_from, "key": name}}}
            for name in dict.fromkeys((*job.secrets.values(), *job.inherited))
        ),
    ]


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def _literal(word: str) -> str:
    """Return a word that Kubernetes passes on as it is: it replaces `$(NAME)` and turns `$$` into `$`."""
    return word.replace("$", "$$")
