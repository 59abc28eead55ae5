"""MLflow: the login of a training, which the last rank needs and only the user's machine may have."""

from __future__ import annotations

import os

from flagscale.checks.tracking import PASSWORD, TOKEN, USER
from flagscale.config.schema import Environment

PACKAGE = "mlflow-skinny"
"""The distribution with MLflow's client, which `mlflow` requires too."""


def login_of(envs: Environment) -> dict[str, str]:
    """Return the variables of a login in the environment of this command, unless `envs` has any of them."""
    special = (*envs.device_type_specific.values(), *envs.node_specific.values())
    configured = {name for part in (*special, envs.common()) for name in part}
    names = (USER, PASSWORD, TOKEN)
    if configured & {*names}:
        return {}
    return {name: os.environ[name] for name in names if os.environ.get(name)}
