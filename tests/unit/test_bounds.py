"""Values that are outside of what an engine declares."""

from __future__ import annotations

from typing import Any

import pytest

from flagscale.config.bounds import broken_bounds
from flagscale.config.engine_args import FlatKey, render
from flagscale.config.source_map import SourceMap
from flagscale.engines.vllm.catalog import vllm_catalog
from flagscale.errors import Problem

SPECULATIVE = "serve.speculative_config"


def reported(**keys: Any) -> list[str]:
    """Return the problems of these arguments of a server."""
    problems: list[Problem] = []
    flat_keys = [FlatKey(name, value, f"serve.{name}") for name, value in keys.items()]
    source_map = SourceMap(lines={"serve.speculative_config.method": "a.yaml:7"})
    render(flat_keys, vllm_catalog().server, source_map, problems)
    return [str(problem) for problem in problems]


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("gpu_memory_utilization", 1.5, "is 1.5; it must be more than 0 and at most 1"),
        ("gpu_memory_utilization", 0, "is 0.0; it must be more than 0 and at most 1"),
        ("max_num_seqs", 0, "is 0; it must be at least 1"),
        ("max_num_batched_tokens", "0k", "is 0; it must be at least 1"),
        ("max_model_len", 0, "is 0; it must be at least -1 and not 0"),
        ("block_size", -16, "is -16; it must be more than 0"),
        ("seed", -1, "is -1; it must be at least 0 and at most 4294967295"),
        ("kv_cache_memory_bytes", 0, "is 0; it must be at least 1"),
        ("num_gpu_blocks_override", -5, "is -5; it must be at least 1"),
        ("watermark", 1, "is 1.0; it must be at least 0 and less than 1"),
        ("max_lora_rank", 12, "cannot be '12'; valid: 1, 8, 16, 32, "),
        ("optimization_level", 4, "cannot be 4; valid: 0, 1, 2, 3"),
        ("optimization_level", "O1", "takes a whole number, not 'O1'"),
        ("override_generation_config", "0.5", "takes a mapping, not 0.5"),
        ("sse_keep_alive_interval", -1, "is -1; it must be at least 0"),
    ],
)
def test_a_value_out_of_range(name: str, value: Any, what: str) -> None:
    (found,) = reported(**{name: value})
    assert found.startswith(f"serve.{name}: `{name}` {what}")


def test_values_at_the_ends_are_valid() -> None:
    keys = {"gpu_memory_utilization": 1, "max_num_seqs": 1, "max_model_len": "auto", "seed": 4294967295}
    assert reported(**keys, optimization_level="0", max_lora_rank=320) == []
    assert (
        reported(
            watermark=0, optimization_level=3, compilation_config={"mode": "NONE", "cudagraph_mode": "FULL"}
        )
        == []
    )


def test_every_wrong_key_within_a_mapping_has_its_place() -> None:
    found = reported(
        speculative_config={"method": "ngrm", "num-speculative-tokens": 0, "modl": "x", "model": 3},
        kv_transfer_config='{"kv_role": "producer", "kv_port": "x"}',
        watermark_config={"alpha": 2},
    )
    assert found == [
        f"a.yaml:7: {SPECULATIVE}.method: `speculative_config.method` cannot be 'ngrm'; "
        "did you mean `ngram`?",
        f"{SPECULATIVE}.num-speculative-tokens: `speculative_config.num-speculative-tokens` is 0; "
        "it must be more than 0",
        f"{SPECULATIVE}.modl: `speculative_config` has no key `modl`; did you mean `model`?",
        f"{SPECULATIVE}.model: `speculative_config.model` takes a text, not 3",
        "serve.kv_transfer_config.kv_role: `kv_transfer_config.kv_role` cannot be 'producer'; "
        "did you mean `kv_producer`?",
        "serve.kv_transfer_config.kv_port: `kv_transfer_config.kv_port` takes a whole number, not 'x'",
        "serve.watermark_config.alpha: `watermark_config.alpha` is 2; it must be at least 0 and at most 1",
        "serve.watermark_config: `watermark_config` needs the key `key`",
    ]


@pytest.mark.parametrize(
    ("bounds", "value", "broken"),
    [
        ({}, object(), []),
        ({"type": ["integer", "null"], "minimum": 1}, None, []),
        ({"type": "integer", "minimum": 1}, None, [("", "`n` takes a whole number, not null")]),
        ({"type": "integer", "minimum": 1}, "0", [("", "`n` is 0; it must be at least 1")]),
        ({"type": "integer", "minimum": 2}, True, [("", "`n` is True; it must be at least 2")]),
        ({"type": "boolean"}, "on", []),
        (
            {"anyOf": [{"type": "integer"}, {"additionalProperties": {"type": "integer"}, "type": "object"}]},
            {"count": "x"},
            [("count", "`n.count` takes a whole number, not 'x'")],
        ),
        ({"items": {"type": "string"}}, ["a", 1], [("1", "`n[1]` takes a text, not 1")]),
        ({"additionalProperties": {"maximum": 2}}, {"a": 3}, [("a", "`n.a` is 3; it must be at most 2")]),
        ({"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 3}]}, "x", []),
        (
            {"anyOf": [{"type": "array"}, {"type": "integer", "minimum": 3}]},
            2,
            [("", "`n` is 2; it must be at least 3")],
        ),
    ],
)
def test_bounds_are_read_as_pydantic_writes_them(
    bounds: dict[str, Any], value: Any, broken: list[tuple[str, str]]
) -> None:
    assert [*broken_bounds(bounds, "n", value)] == broken
