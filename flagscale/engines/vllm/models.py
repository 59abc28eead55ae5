"""The models that a `serve` group names: one by the group's own keys, or several below `models`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flagscale.config.catalog import Catalog
from flagscale.config.engine_args import EngineArguments, FlatKey, render
from flagscale.config.source_map import SourceMap
from flagscale.engines.vllm.arguments import KEY_FILE, SECRETS, flat, refuse, take_secrets
from flagscale.errors import Problem

LOOPBACK = "127.0.0.1"
_FIRST_PORT = 8000


@dataclass(frozen=True)
class Model:
    """A model to serve: its name below `models` ("" if there is only one), and its number of instances."""

    name: str
    path: str
    """The key path of its group, for messages."""
    arguments: EngineArguments
    instances: int


def read_models(
    group: str, raw: Mapping[str, Any], catalog: Catalog, source_map: SourceMap, problems: list[Problem]
) -> tuple[list[Model], dict[str, str]]:
    """Return the models, in the order written, and the secrets as environment variables."""
    beside = {key: value for key, value in raw.items() if key != "models"}
    shared, secrets = take_secrets(flat(group, beside, catalog, source_map, problems), source_map, problems)
    if "models" not in raw:
        return [_model("", group, shared, catalog, source_map, problems)], secrets
    named = raw["models"]
    if not isinstance(named, Mapping) or not named:
        problems.append(
            Problem("a mapping of names to models is expected here", source_map.where(f"{group}.models"))
        )
        return [], secrets
    models = []
    for index, (key, keys) in enumerate(named.items()):
        name, path = str(key), f"{group}.models.{key}"
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
            what = f"`{name}` is not a valid model name: use letters, digits, `.`, `_` and `-`"
            problems.append(Problem(what, source_map.where(path)))
        elif not isinstance(keys, Mapping):
            problems.append(Problem("the keys of a model are expected here", source_map.where(path)))
        else:
            own = flat(path, keys, catalog, source_map, problems)
            for flat_key in (flat_key for flat_key in own if flat_key.name in (*SECRETS, KEY_FILE)):
                what = f"`{flat_key.name}` applies to all models: give it beside `models`"
                problems.append(Problem(what, source_map.where(flat_key.path)))
            # The port beside `models` is the first one's; the others count on from it.
            given = {flat_key.name for flat_key in own} | ({"port"} if index else set())
            flat_keys = [*own, *(flat_key for flat_key in shared if flat_key.name not in given)]
            models.append(_model(name, path, flat_keys, catalog, source_map, problems))
    return models, secrets


def _model(
    name: str,
    path: str,
    flat_keys: list[FlatKey],
    catalog: Catalog,
    source_map: SourceMap,
    problems: list[Problem],
) -> Model:
    instances = 1
    kept = []
    for flat_key in refuse(flat_keys, source_map, problems):
        if flat_key.name != "instances":
            kept.append(flat_key)
        elif type(flat_key.value) is int and flat_key.value > 0:
            instances = flat_key.value
        else:
            what = f"`instances` takes a whole number of at least 1, not {flat_key.value!r}"
            problems.append(Problem(what, source_map.where(flat_key.path)))
    defaults = {"host": LOOPBACK, **({"served_model_name": name} if name else {})}
    given = {flat_key.name for flat_key in kept if flat_key.value is not None}
    kept += [FlatKey(key, value, f"{path}.{key}") for key, value in defaults.items() if key not in given]
    return Model(name, path, render(kept, catalog, source_map, problems), instances)


def first_ports(models: list[Model]) -> list[int]:
    """Return the port of each model's first instance: the one it names, else the next free one from 8000."""
    ports, following = [], _FIRST_PORT
    for model in models:
        port = int(model.arguments.values["port"]) if "port" in model.arguments.paths else following
        ports.append(port)
        following = port + model.instances
    return ports
