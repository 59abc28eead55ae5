"""The arguments and tasks of lm-evaluation-harness, from the committed catalog (`make catalog`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from flagscale.config.catalog import Catalog, catalog_of

_FILE = Path(__file__).parents[1] / "catalog" / "lm_eval.json"


@dataclass(frozen=True)
class HarnessCatalog:
    """Everything about one version of the harness that can be checked without it."""

    run: Catalog
    """The arguments of `lm-eval run`."""
    tasks: frozenset[str]
    """The names of its tasks, groups and tags."""
    task_keys: frozenset[str]
    """The keys of a file that defines a task."""
    output_types: tuple[str, ...]
    """The values of its key `output_type`."""


@cache
def harness_catalog() -> HarnessCatalog:
    """Return the catalog of the pinned version."""
    raw = json.loads(_FILE.read_text(encoding="utf-8"))
    return HarnessCatalog(
        catalog_of(raw), task_names(raw["tasks"]), frozenset(raw["task_keys"]), tuple(raw["output_types"])
    )


def task_names(packed: Mapping[str, str]) -> frozenset[str]:
    """Return the names that a catalog holds by their part before the first `_`."""
    return frozenset(first + rest for first, rests in packed.items() for rest in rests.split(" "))


_OF_FLAGSCALE = "FlagScale writes results, tables and pictures into the run directory"
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("output_path", "show_config", "hf_hub_log_args"), _OF_FLAGSCALE),
    **dict.fromkeys(
        ("wandb_args", "wandb_config_args", "trackio_args"), f"remove it: {_OF_FLAGSCALE} and nowhere else"
    ),
    "config": "write the keys of that file here",
    "verbosity": "set LMEVAL_LOG_LEVEL in experiment.envs",
    "check_integrity": "it runs the harness's own tests, which its package does not contain",
    "predict_only": "it computes no scores; use `log_samples: true` to keep the answers beside them",
    "use_cache": "answers of an earlier model would be scored again",
    "cache_requests": "it writes into the harness's own package",
}
"""Arguments of the harness that cannot be given -> what to do instead."""
