"""Settings of an engine that cannot be combined with guidance."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from flagscale.errors import UserError
from vllm_flagscale.guidance.seams import conflicts, refuse_conflicts


def engine(has_mamba_layers: bool = False, **changes: Any) -> tuple[Any, Any]:
    settings = {
        "speculative_config": None,
        "kv_transfer_config": None,
        "ec_transfer_config": None,
        "is_encoder_decoder": False,
        "is_diffusion": False,
        "runner_type": "generate",
        "decode_context_parallel_size": 1,
        "prefill_context_parallel_size": 1,
        **changes,
    }
    config = SimpleNamespace(**settings)
    config.model_config = config.parallel_config = config
    return config, SimpleNamespace(has_mamba_layers=has_mamba_layers)


def test_an_ordinary_engine_guides() -> None:
    assert [*conflicts(*engine())] == []
    refuse_conflicts(*engine())


@pytest.mark.parametrize(
    ("setting", "value", "named"),
    [
        ("speculative_config", object(), "speculative decoding"),
        ("kv_transfer_config", object(), "a KV connector"),
        ("ec_transfer_config", object(), "an encoder connector"),
        ("is_encoder_decoder", True, "a model with encoder and decoder"),
        ("is_diffusion", True, "a diffusion model"),
        ("runner_type", "pooling", "a model that runs as `pooling`"),
        ("decode_context_parallel_size", 2, "context parallelism"),
        ("prefill_context_parallel_size", 2, "context parallelism"),
        ("has_mamba_layers", True, "a model with recurrent (Mamba) layers"),
    ],
)
def test_each_conflict_is_named(setting: str, value: object, named: str) -> None:
    assert [what for what, _ in conflicts(*engine(**{setting: value}))] == [named]


def test_all_conflicts_are_reported_at_once_with_the_key_to_remove() -> None:
    with pytest.raises(UserError) as refused:
        refuse_conflicts(*engine(speculative_config=object(), kv_transfer_config=object()))
    assert len(refused.value.problems) == 2
    assert "`guidance` cannot be combined with a KV connector\n    remove `kv_transfer_config`" in str(
        refused.value
    )
