"""Weights & Biases: the mode and the key of a training, which the launcher decides for all hosts.

The last rank logs, and its host may have neither the environment nor the login of the user's machine.
"""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from flagscale.config.schema import Environment

PACKAGE = "wandb"
KEY, MODE, BASE_URL = "WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"
_SITE = "https://api.wandb.ai"
_GO_ONLINE = f"set wandb_api_key or experiment.envs.{KEY}, or run `wandb login` on this machine"


@dataclass(frozen=True)
class Login:
    """What the hosts of a job need beyond what its configuration gives them."""

    env: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    notice: str = ""


def login_of(own: Mapping[str, str], envs: Environment) -> Login:
    """Return the mode and key of a job that logs to W&B: offline without a key, unless a mode is given.

    Args:
        own: the variables that the job's keys `wandb_api_key` and `wandb_mode` stand for.
        envs: the environment in the job's configuration.
    """
    special = (*envs.device_type_specific.values(), *envs.node_specific.values())
    configured = {name: value for part in (*special, envs.common(), own) for name, value in part.items()}
    inherited = {name: os.environ[name] for name in (MODE, BASE_URL) if os.environ.get(name)}
    env = {name: value for name, value in inherited.items() if name not in configured}
    given = env | configured
    if KEY in configured:
        return Login(env)
    key = os.environ.get(KEY) or _key_of_login(given.get(BASE_URL, _SITE))
    if key:
        return Login(env, {KEY: key})
    if MODE not in given:
        why = f"W&B logs offline because there is no API key; to log online, {_GO_ONLINE}"
        return Login({**env, MODE: "offline"}, notice=why)
    notice = f"W&B has no API key for mode online; {_GO_ONLINE}" if given[MODE] == "online" else ""
    return Login(env, notice=notice)


def _key_of_login(url: str) -> str:
    """Return the key that `wandb login` saved on this machine; "" if there is none."""
    with suppress(OSError, netrc.NetrcParseError):
        file = netrc.netrc(os.environ.get("NETRC"))
        found = file.authenticators(urlsplit(url).hostname or "")
        return found[2] or "" if found else ""
    return ""
