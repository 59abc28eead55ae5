"""Settings of an engine that cannot be combined with guidance."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from flagscale.errors import UserError
from vllm_flagscale.guidance.seams import conflicts, refuse_conflicts


def engine(**changes: Any) -> SimpleNamespace:
    """Return the configuration of an engine, as far as guidance reads it."""
    settings = {
        "speculative_config": None,
        "kv_transfer_config": None,
        "ec_transfer_config": None,
        "is_encoder_decoder": False,
        "is_diffusion": False,
        "runner_type": "generate",
        "decode_context_parallel_size": 1,
        "prefill_context_parallel_size": 1,
        "enable_batch_sharded_sampling": False,
        "watermark_config": None,
        "logprobs_mode": "raw_logprobs",
        **changes,
    }
    config = SimpleNamespace(**settings)
    config.model_config = config.parallel_config = config
    return config


def test_an_ordinary_engine_guides() -> None:
    assert [*conflicts(engine(), SimpleNamespace(has_mamba_layers=False))] == []
    refuse_conflicts(engine())


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
        ("enable_batch_sharded_sampling", True, "sampling that is sharded over ranks"),
        ("watermark_config", object(), "watermarks, because it draws the tokens itself"),
        ("logprobs_mode", "processed_logprobs", "`logprobs_mode: processed_logprobs`, which would show"),
        ("logprobs_mode", "processed_logits", "`logprobs_mode: processed_logits`, which would show"),
    ],
)
def test_each_conflict_is_named(setting: str, value: object, named: str) -> None:
    ((what, _),) = conflicts(engine(**{setting: value}))
    assert what.startswith(named)


def test_a_model_with_recurrent_layers_is_named_once_there_is_a_cache() -> None:
    ((what, _),) = conflicts(engine(), SimpleNamespace(has_mamba_layers=True))
    assert what == "a model with recurrent (Mamba) layers"


def test_all_conflicts_are_reported_at_once_with_the_key_to_remove() -> None:
    with pytest.raises(UserError) as refused:
        refuse_conflicts(engine(speculative_config=object(), kv_transfer_config=object()))
    assert len(refused.value.problems) == 2
    assert "`guidance` cannot be combined with a KV connector\n    remove `kv_transfer_config`" in str(
        refused.value
    )
