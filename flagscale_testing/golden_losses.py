"""Five trainings of shrunk examples on real text, whose losses are kept in files.

A file notices a change of what is computed that no comparison of two layouts can notice, because both would
change. The losses are those of fp32: a processor that rounds sums differently has nearly the same ones.
"""

from __future__ import annotations

import functools
import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from flagscale.config.load import load_experiment
from flagscale.config.schema import Experiment
from flagscale.config.source_map import SourceMap
from flagscale_testing.pairs import write_pair
from flagscale_testing.ranks.forked import Curve, Run
from flagscale_testing.ranks.training import ROOT
from flagscale_testing.shrunk import job_of, ranks_of, shrunk

FOLDER = ROOT / "tests" / "golden" / "losses"
TEXT = ROOT / "examples" / "docstrings" / "docstrings.jsonl"
TOLERANCE = 2e-4
"""The largest difference of a step's loss, relative to the golden one."""
STEPS = 20
_FIXED: Mapping[str, Any] = {
    "bf16": None,
    "micro_batch_size": 4,
    "train_iters": STEPS,
    "eval_iters": 0,
    "lr_decay_style": "constant",
    "split": "100,0,0",
}
_PACKAGES = ("torch", "megatron-core")


@dataclass(frozen=True)
class Case:
    """A training of a file `examples/FOLDER/conf/CONFIG.yaml`, on two ranks in a layout.

    `other` is another layout, which computes the same.
    """

    example: str
    layout: Mapping[str, Any]
    other: Mapping[str, Any]


ONE: Mapping[str, Any] = {
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
    "expert_model_parallel_size": 1,
    "sequence_parallel": False,
}
"""One process, or two that have the whole model each; a layout changes some of these."""
TP2: Mapping[str, Any] = {"tensor_model_parallel_size": 2, "sequence_parallel": True}
PP2: Mapping[str, Any] = {"pipeline_model_parallel_size": 2}
EP2: Mapping[str, Any] = {"expert_model_parallel_size": 2}
CASES: Mapping[str, Case] = {
    "llama3_8b": Case("llama/config_llama3_8b", TP2, PP2),
    "mixtral_8x7b": Case("mixtral/config_8x7b", EP2, TP2),
    "qwen3_8b": Case("qwen/config_qwen3_8b", PP2, TP2),
    "deepseek_demo": Case("deepseek/config", EP2, TP2),
    "aquila_34b": Case("aquila/config_34b", {}, PP2),
}
"""By the name of the file with the losses."""


@functools.cache
def load_example(example: str, *overrides: str) -> Experiment:
    """Return the experiment of `examples/FOLDER/conf/CONFIG.yaml`, given as `FOLDER/CONFIG`."""
    folder, config = example.split("/")
    with initialize_config_dir(str(ROOT / "examples" / folder / "conf"), version_base="1.3"):
        loaded = load_experiment(compose(config, [*overrides]), SourceMap())
    assert loaded.experiment, loaded.problems
    return loaded.experiment


def write_text(prefix: Path) -> Path:
    """Write the answers of the committed conversations as a pair, a token per byte; return its prefix."""
    texts = [json.loads(line)["messages"][1]["content"].encode("ascii") for line in TEXT.open()]
    tokens = b"".join(texts)
    write_pair(prefix, [len(text) for text in texts], struct.pack(f"<{len(tokens)}H", *tokens))
    return prefix


def arguments_of(case: Case, **changes: Any) -> dict[str, Any]:
    """Return the training's arguments without its paths: those of the shrunk example, in fp32."""
    small = shrunk(load_example(case.example), **{**_FIXED, **ONE, **case.layout, **changes})
    return {name: value for name, value in sorted(small.arguments.items()) if value is not None}


def run_of(
    name: str, case: Case, folder: Path, *, ranks: int | None = None, mutation: str = "", **changes: Any
) -> Run:
    """Return the run of a case on text in `folder`, with changed arguments or a mutation (see `Run`)."""
    arguments = arguments_of(case, **changes)
    prefix = folder / "text"
    if not prefix.with_suffix(".idx").exists():
        write_text(prefix)
    paths = {"data_path": [str(prefix)], "data_cache_path": str(folder / f"cache of {name}")}
    places = {"save": None, "load": None, "tensorboard_dir": None}
    experiment = load_example(case.example)
    job = job_of(experiment.model_copy(update={"arguments": arguments | paths | places}))
    return Run(name, ranks or ranks_of(arguments), job.role.argv, mutation=mutation)


def record(case: Case, losses: Iterable[float]) -> str:
    """Return the text of a file: the losses, and how they came about."""
    return json.dumps(
        {
            "example": case.example,
            "made by": "python -m benchmarks.golden_losses --write",
            "versions": {name: version(name) for name in _PACKAGES},
            "arguments": arguments_of(case),
            "losses": [*losses],
        },
        indent=1,
    )


@functools.cache
def golden(name: str) -> dict[str, Any]:
    """Return what the file of a case holds."""
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return found


def difference(found: Curve, expected: Iterable[float]) -> float:
    """Return the largest relative difference; infinite if a loss is NaN or missing, or the run failed."""
    losses = [*expected]
    if found.error or len(found.losses) != len(losses) or not all(map(math.isfinite, found.losses)):
        return float("inf")
    return max(abs(one - other) / other for one, other in zip(found.losses, losses, strict=True))
