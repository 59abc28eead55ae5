"""The fields of Kubernetes and JobSet that a manifest of ours may have, as a schema that allows no other.

Written from the published references: `jobset.x-k8s.io/v1alpha2` (jobset.sigs.k8s.io/docs/reference), and
Kubernetes' `batch/v1` Job, `v1` Pod and ConfigMap. If JOBSET_CRD names the published schema of JobSet
(`jobset.x-k8s.io_jobsets.yaml` of a release, which is not ours and has 800 kB), that is used too.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jsonschema
import yaml

TEXT = {"type": "string", "minLength": 1}
SWITCH = {"type": "boolean"}
COUNT = {"type": "integer", "minimum": 0}
LABEL = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
PATH = {"type": "string", "pattern": "^/"}
TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}


def one_of(*values: str) -> dict[str, Any]:
    return {"enum": list(values)}


def fields(*required: str, **known: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(required),
        "properties": known,
        "additionalProperties": False,
    }


def list_of(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


METADATA = fields("name", name=LABEL, namespace=LABEL)
VARIABLE = fields(
    "name",
    name={"type": "string", "pattern": "^[A-Za-z_][A-Za-z0-9_]*$"},
    value={"type": "string"},
    valueFrom=fields(
        fieldRef=fields("fieldPath", fieldPath=TEXT), secretKeyRef=fields("name", "key", name=TEXT, key=TEXT)
    ),
)
CONTAINER = fields(
    "name",
    "image",
    name=LABEL,
    image=TEXT,
    command=list_of(TEXT),
    args=list_of(TEXT),
    env=list_of(VARIABLE),
    resources=fields(requests=TEXTS, limits=TEXTS),
    volumeMounts=list_of(fields("name", "mountPath", name=LABEL, mountPath=PATH, readOnly=SWITCH)),
)
VOLUME = fields(
    "name",
    name=LABEL,
    configMap=fields("name", name=TEXT),
    persistentVolumeClaim=fields("claimName", claimName=TEXT, readOnly=SWITCH),
    emptyDir=fields(medium=one_of("", "Memory"), sizeLimit=TEXT),
)
POD = fields(
    "containers",
    "restartPolicy",
    restartPolicy=one_of("Never", "OnFailure"),
    terminationGracePeriodSeconds=COUNT,
    shareProcessNamespace=SWITCH,
    serviceAccountName=TEXT,
    nodeSelector=TEXTS,
    imagePullSecrets=list_of(fields("name", name=TEXT)),
    containers=list_of(CONTAINER),
    volumes=list_of(VOLUME),
)
EXIT_CODES = fields(
    "operator",
    "values",
    containerName=LABEL,
    operator=one_of("In", "NotIn"),
    values=list_of({"type": "integer", "minimum": 1, "maximum": 255}),
)
POD_RULE = fields("action", action=one_of("FailJob", "FailIndex", "Ignore", "Count"), onExitCodes=EXIT_CODES)
JOB = fields(
    "template",
    parallelism=COUNT,
    completions=COUNT,
    completionMode=one_of("Indexed", "NonIndexed"),
    backoffLimit=COUNT,
    podFailurePolicy=fields("rules", rules=list_of(POD_RULE)),
    template=fields("spec", spec=POD),
)
JOBSET_RULE = fields(
    "name",
    "action",
    name={"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", "maxLength": 128},
    action=one_of("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"),
    onJobFailureReasons={
        "type": "array",
        "items": one_of(
            "BackoffLimitExceeded",
            "DeadlineExceeded",
            "FailedIndexes",
            "MaxFailedIndexesExceeded",
            "PodFailurePolicy",
        ),
    },
)
JOBSET = fields(
    "apiVersion",
    "kind",
    "metadata",
    "spec",
    apiVersion=one_of("jobset.x-k8s.io/v1alpha2"),
    kind=one_of("JobSet"),
    metadata=METADATA,
    spec=fields(
        "replicatedJobs",
        network=fields(enableDNSHostnames=SWITCH, subdomain=LABEL),
        failurePolicy=fields(maxRestarts=COUNT, rules=list_of(JOBSET_RULE)),
        replicatedJobs=list_of(
            fields("name", "template", name=LABEL, replicas=COUNT, template=fields("spec", spec=JOB))
        ),
    ),
)
CONFIG_MAP = fields(
    "apiVersion",
    "kind",
    "metadata",
    "data",
    apiVersion=one_of("v1"),
    kind=one_of("ConfigMap"),
    metadata=METADATA,
    data=TEXTS,
)


def mistakes(thing: dict[str, Any]) -> list[str]:
    """Return what is wrong with an object of a manifest."""
    schemas = [CONFIG_MAP if thing.get("kind") == "ConfigMap" else JOBSET]
    if thing.get("kind") == "JobSet" and (published := os.environ.get("JOBSET_CRD")):
        schemas.append(_published(Path(published)))
    return [
        f"{error.json_path}: {error.message}"
        for schema in schemas
        for error in jsonschema.Draft202012Validator(schema).iter_errors(thing)
    ]


def _published(path: Path) -> dict[str, Any]:
    """Return the schema of a CRD with every unknown field refused, as `kubectl --validate=strict` does."""
    versions = yaml.safe_load(path.read_text())["spec"]["versions"]
    schema: dict[str, Any] = next(
        version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1alpha2"
    )
    _close(schema)
    return {**schema, "properties": {**schema["properties"], "metadata": {"type": "object"}}}


def _close(schema: Any) -> None:
    for one in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        _close(one)
    if isinstance(schema, dict) and isinstance(schema.get("properties"), dict):
        schema.setdefault("additionalProperties", False)
