"""The arguments and models that vLLM supports, from the committed catalog (`make catalog`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from flagscale.config.bounds import Bounds
from flagscale.config.catalog import Catalog, catalog_from, catalog_of

_FILE = Path(__file__).parents[1] / "catalog" / "vllm.json"


@dataclass(frozen=True)
class SamplingField:
    """A field of SamplingParams: the JSON types that its value may have, and its bounds."""

    kinds: tuple[str, ...]
    bounds: Bounds


@dataclass(frozen=True)
class VllmCatalog:
    """Everything about one version of vLLM that can be checked without it."""

    server: Catalog
    """The arguments of a server."""
    engine: Catalog
    """The arguments of an engine without a server."""
    sampling: Mapping[str, SamplingField]
    """The fields of SamplingParams."""
    architectures: tuple[str, ...]
    cpu_head_sizes: tuple[int, ...]
    cpu_latent_sizes: tuple[int, ...]
    """Of what multi-latent attention caches per token, rotary part included."""
    length_keys: tuple[str, ...]
    """The keys of `config.json` that limit the length of a sequence."""
    lengths: Mapping[str, Mapping[str, Any]]
    """By model type: these keys (and the window's) with their defaults, or the key that they stand for."""
    layer_types: tuple[str, ...]


@cache
def vllm_catalog() -> VllmCatalog:
    """Return the catalog of the pinned version."""
    raw = json.loads(_FILE.read_text(encoding="utf-8"))
    server = catalog_of(raw)
    names = set(raw["engine_arguments"])
    negatives = {raw["arguments"][name].get("negative") for name in names}
    options = {name: one for name, one in server.options.items() if name in names | negatives}
    return VllmCatalog(
        server=server,
        engine=catalog_from(server.engine, server.version, options),
        sampling={
            name: SamplingField(tuple(entry["kinds"]), entry.get("bounds", {}))
            for name, entry in raw["sampling"].items()
        },
        architectures=tuple(raw["architectures"]),
        cpu_head_sizes=tuple(raw["cpu_head_sizes"]),
        cpu_latent_sizes=tuple(raw["cpu_latent_sizes"]),
        length_keys=tuple(raw["length_keys"]),
        lengths=raw["lengths"],
        layer_types=tuple(raw["layer_types"]),
    )
