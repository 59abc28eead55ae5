"""Keys of vLLM that do not go to it as they are: secrets, and what FlagScale decides itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from flagscale.config.engine_args import Catalog
from flagscale.config.leaves import Leaf, flatten
from flagscale.config.locate import Locator
from flagscale.errors import Problem
from flagscale.parallel.finding import Finding

KEY_FILE = "api_key_file"
SECRETS = {"api_key": "VLLM_API_KEY", "hf_token": "HF_TOKEN"}
"""Key -> the environment variable in which vLLM, or the hub's client, looks for it."""
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *("headless", "nnodes", "node_rank", "master_addr", "master_port", "device_ids"),
            *("data_parallel_rank", "data_parallel_start_rank", "data_parallel_size_local"),
            *("data_parallel_address", "data_parallel_rpc_port"),
        ),
        "FlagScale decides it from the hosts and the parallel degrees",
    ),
    **dict.fromkeys(
        (
            *("data_parallel_external_lb", "data_parallel_hybrid_lb"),
            "data_parallel_multi_port_external_lb",
        ),
        "one server answers for all its data parallel ranks; `instances` starts several",
    ),
    "config": "the keys of that file belong here",
    "grpc": "only HTTP servers are started",
    "uds": "only HTTP servers with a port are started",
}
_DEGREES = ("tensor_parallel_size", "pipeline_parallel_size", "prefill_context_parallel_size")


def flat(
    path: str, keys: Mapping[str, Any], catalog: Catalog, locator: Locator, problems: list[Problem]
) -> list[Leaf]:
    """Return the leaves below a group; a mapping is a value where the engine has such an argument."""

    def takes_mapping(name: str) -> bool:
        option = catalog.find(name)
        return option is not None and option.kind == "value" and option.type not in ("int", "float")

    return flatten(path, keys, takes_mapping, locator, problems)


def refuse(leaves: list[Leaf], locator: Locator, problems: list[Problem]) -> list[Leaf]:
    """Return the leaves that a user may give; of the others those that say something go to `problems`."""
    for leaf in leaves:
        if leaf.name in REFUSED and leaf.value not in (None, False):
            what = f"`{leaf.name}` cannot be given here"
            problems.append(Problem(what, locator.where(leaf.path), REFUSED[leaf.name]))
    return [leaf for leaf in leaves if leaf.name not in REFUSED]


def take_secrets(
    leaves: list[Leaf], locator: Locator, problems: list[Problem]
) -> tuple[list[Leaf], dict[str, str]]:
    """Return the leaves that are none, and the environment that holds those that are."""
    secrets: dict[str, str] = {}
    kept = []
    for leaf in leaves:
        if leaf.name not in (*SECRETS, KEY_FILE):
            kept.append(leaf)
        elif leaf.value is not None:
            name = SECRETS.get(leaf.name, SECRETS["api_key"])
            try:
                text = _read_key(str(leaf.value)) if leaf.name == KEY_FILE else leaf.value
                if not isinstance(text, str) or not text:
                    raise ValueError(f"`{leaf.name}` takes one text that is not empty")
                if name in secrets:
                    raise ValueError(f"give `api_key` or `{KEY_FILE}`, one of them")
                secrets[name] = text
            except ValueError as error:
                problems.append(Problem(str(error), locator.where(leaf.path)))
    return kept, secrets


def _read_key(path: str) -> str:
    """Return what a key file holds; ValueError where it holds no key."""
    try:
        key = Path(path).expanduser().read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not a text file") from None
    if not key:
        raise ValueError(f"{path}: holds no key")
    return key


def devices_of(values: Mapping[str, Any]) -> int:
    """Return how many devices one data parallel rank of an engine takes."""
    return prod(int(values[name]) for name in _DEGREES)


def degree_findings(values: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield the degrees that are none."""
    for name in (*_DEGREES, "data_parallel_size"):
        if values[name] < 1:
            yield name, f"`{name}` is at least 1, not {values[name]}"
