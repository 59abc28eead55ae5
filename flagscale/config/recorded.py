"""The configuration as YAML that loads as the same values, in Hydra's reading of YAML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from flagscale.config.secrets import masked


def recorded_yaml(tree: Mapping[str, Any], texts: Mapping[str, str]) -> str:
    """Return plain values as YAML, secrets masked; `texts` (by key path) replace numbers that an engine gets
    as text.
    """
    return yaml.dump(recorded_values(tree, texts), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def recorded_values(tree: Mapping[str, Any], texts: Mapping[str, str]) -> Any:
    """Return plain values that load as the same values from YAML, secrets masked; see `recorded_yaml`."""
    return masked(literal(tree, texts))


_NO_TEXTS: Mapping[str, str] = {}


def literal(value: Any, texts: Mapping[str, str] = _NO_TEXTS, path: str = "") -> Any:
    """Return a copy in which every text stands for itself: `${` begins an interpolation unless escaped."""
    if isinstance(value, Mapping):
        return {
            key: literal(item, texts, f"{path}.{key}" if path else str(key)) for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [literal(item, texts, f"{path}.{index}") for index, item in enumerate(value)]
    value = texts.get(path, value)
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


class _Dumper(yaml.SafeDumper):
    """Quotes a text such as `1e5` too: a number for OmegaConf, although not for YAML 1.1."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"), list("-+0123456789")
)
