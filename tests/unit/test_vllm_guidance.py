"""Guidance in the launcher: what it passes on, and what it refuses before anything starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.vllm_jobs import gpus, inference, job_of, refusal


@pytest.fixture
def model(tmp_path: Path, write_model: Callable[..., Path]) -> str:
    return str(write_model(tmp_path / "m"))


def test_every_part_of_an_instance_guides(tmp_path: Path, model: str) -> None:
    keys = {"model": model, "guidance": True, "tensor_parallel_size": 2, "data_parallel_size": 2}
    job = job_of(tmp_path, "serve", keys, gpus(2, 2))
    words = [service.argv for services in job.services.values() for service in services]
    assert len(words) == 2
    assert all(argv.count("--guidance") == 1 for argv in words)
    assert job.layout.endswith(" TP2 DP2 with guidance")


def test_each_model_has_its_own_key(tmp_path: Path, model: str) -> None:
    models = {"a": {"model": model}, "b": {"model": model, "guidance": False}}
    job = job_of(tmp_path, "serve", {"guidance": True, "models": models}, gpus(2))
    guided = {service.name: "--guidance" in service.argv for service in job.services[0]}
    assert guided == {"a": True, "b": False}
    wrong = refusal(tmp_path, "serve", {"model": model, "guidance": "yes"})
    assert "`guidance` takes true or false, not 'yes'" in wrong


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"scheduler_cls": "a.b.C"}, "scheduler_cls"),
    ({"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}}, "speculative_config"),
    ({"spec_method": "ngram", "spec_tokens": 2}, "spec_method"),
    ({"kv_transfer_config": {"kv_connector": "X", "kv_role": "kv_both"}}, "kv_transfer_config"),
    ({"ec_transfer_config": {"ec_connector": "X"}}, "ec_transfer_config"),
    ({"kv_offloading_size": 1.0}, "kv_offloading_size"),
    ({"logprobs_mode": "processed_logprobs"}, "logprobs_mode"),
    ({"runner": "pooling"}, "runner"),
    ({"enable_batch_sharded_sampling": True}, "enable_batch_sharded_sampling"),
    ({"max_num_seqs": 1}, "max_num_seqs"),
    ({"tensor_parallel_size": 2, "decode_context_parallel_size": 2}, "decode_context_parallel_size"),
]


@pytest.mark.parametrize(("keys", "blamed"), REFUSED, ids=[blamed for _, blamed in REFUSED])
def test_what_cannot_be_combined_is_refused_by_key(
    tmp_path: Path, model: str, keys: dict[str, Any], blamed: str
) -> None:
    def report(**more: Any) -> list[str]:
        lines = refusal(tmp_path, "serve", {"model": model, **keys, **more}, gpus(2)).splitlines()
        return [line for line in lines if "guid" in line]

    assert any(f"`{blamed}" in line for line in report(guidance=True))
    batch = refusal(
        tmp_path,
        "inference",
        inference(model, {"guidance_scale": 3, "negative_prompt": "x"}, **keys),
        gpus(2),
    )
    assert any(f"`{blamed}" in line for line in batch.splitlines())


def test_harmless_arguments_are_kept(tmp_path: Path, model: str) -> None:
    keys = {"logits_processors": ["a:B"], "middleware": ["a.B"], "max_num_seqs": 2, "async_scheduling": False}
    argv = job_of(tmp_path, "serve", {"model": model, "guidance": True, **keys}).services[0][0].argv
    assert {"a:B", "a.B", "--no-async-scheduling", "--guidance"} <= set(argv)


def arguments(tmp_path: Path, model: str, generate: dict[str, Any], **llm: Any) -> tuple[str, ...]:
    return job_of(tmp_path, "inference", inference(model, generate, **llm)).services[0][0].argv


def test_a_batch_passes_its_keys_on(tmp_path: Path, model: str) -> None:
    keys = {"guidance_scale": 3, "negative_prompt": "x"}
    argv = arguments(tmp_path, model, keys)
    assert argv[-3:] == ("--guidance", "--guidance-keys", json.dumps(keys))
    ordinary = arguments(tmp_path, model, {**keys, "guidance_scale": 1})
    assert "--guidance" not in ordinary


def test_lines_alone_make_a_batch_guide(tmp_path: Path, model: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": "a", "guidance_scale": 2}))
    generate = {"prompts": None, "prompts_file": str(file)}
    job = job_of(tmp_path, "inference", inference(model, {**generate, "negative_prompt": "x"}))
    assert "--guidance" in job.services[0][0].argv
    # The hosts check the same lines with the same keys.
    assert job.inputs["guidance"] == {"negative_prompt": "x"}
    assert f"{file}:1: `guidance_scale` needs `negative_prompt`" in refusal(
        tmp_path, "inference", inference(model, generate)
    )


@pytest.mark.parametrize(
    ("generate", "llm", "reported"),
    [
        (
            {"guidance_scale": 3},
            {},
            "generate.guidance_scale: `guidance_scale` needs `negative_prompt`, here",
        ),
        ({"negative_prompt": "x"}, {}, "generate.negative_prompt: `negative_prompt` needs `guidance_scale`"),
        ({"guidance_scale": -1, "negative_prompt": ""}, {}, "at least 0, not -1"),
        ({"guidance_scale": -1, "negative_prompt": ""}, {}, "not empty, not ''"),
        ({"guidance_scale": 2, "negative_prompt": [5] * 60_000}, {}, "too long for a command line"),
        (
            {"guidance_scale": 2, "negative_prompt": "x", "sampling": {"repetition_penalty": 1.3}},
            {},
            "sampling.repetition_penalty: `repetition_penalty` 1.3 cannot be combined",
        ),
        (
            {"guidance_scale": 2, "negative_prompt": "x"},
            {"override_generation_config": {"repetition_penalty": 1.3}},
            "set it to 1, or set `generation_config: vllm` in `llm`",
        ),
        (
            {"guidance_scale": 2, "negative_prompt": "x"},
            {"skip_tokenizer_init": True},
            "without a tokenizer, a `negative_prompt` must be a list of token ids",
        ),
        (
            {"sampling": {"extra_args": {"guidance_scale": 2}}},
            {},
            "sampling.extra_args: `guidance_scale` has no effect here",
        ),
    ],
)
def test_mistakes_of_a_batch_are_reported(
    tmp_path: Path, model: str, generate: dict[str, Any], llm: dict[str, Any], reported: str
) -> None:
    assert reported in refusal(tmp_path, "inference", inference(model, generate, **llm))


@pytest.mark.parametrize("path", ["~nobody-here/a.jsonl", "a\0b.jsonl", "\ud800.jsonl"])
def test_a_path_that_cannot_exist_is_reported(tmp_path: Path, model: str, path: str) -> None:
    wrong = refusal(tmp_path, "inference", inference(model, {"prompts": None, "prompts_file": path}))
    assert "generate.prompts_file" in wrong
    wrong = refusal(tmp_path, "inference", inference(model, {"output": path}))
    assert "generate.output" in wrong
    keys = {"mode": "understand", "images": path}
    wrong = refusal(tmp_path, "inference", inference("BAAI/Emu3-Chat-hf", keys))
    assert "no such file" in wrong


@pytest.mark.parametrize("url", ["~nobody-here/a.png", "iVBORw0K" * 10_000], ids=["home", "base64"])
def test_a_picture_that_no_path_names_is_reported(tmp_path: Path, model: str, url: str) -> None:
    lines = tmp_path / "lines.jsonl"
    part = {"type": "image_url", "image_url": {"url": url}}
    lines.write_text(json.dumps({"messages": [{"role": "user", "content": [part]}]}))
    keys = {"prompts": None, "prompts_file": str(lines)}
    wrong = refusal(tmp_path, "inference", inference(model, keys))
    assert "no such file" in wrong
    assert len(wrong) < 1000


@pytest.mark.parametrize("key", ["chat", "batch_size", "output", "mode", "sampling", "negative_prompt"])
def test_a_huge_value_is_refused_in_a_short_message(tmp_path: Path, model: str, key: str) -> None:
    wrong = refusal(tmp_path, "inference", inference(model, {key: ["é" * 50_000]}))
    assert f"generate.{key}" in wrong
    assert len(wrong) < 1000


def test_a_name_that_no_file_system_takes_is_reported(tmp_path: Path, model: str) -> None:
    keys = {"mode": "image", "ratios": "1:1"}
    assert "llm.model" in refusal(tmp_path, "inference", inference("é" * 50_000, keys))
    wrong = refusal(tmp_path, "inference", inference(model, generation_config="/" + "é" * 50_000))
    assert "llm.generation_config" in wrong


@pytest.mark.parametrize("key", ["guidance_scale", "negative_prompt"])
def test_a_key_in_the_wrong_section_is_sent_to_the_right_one(tmp_path: Path, model: str, key: str) -> None:
    wrong = refusal(tmp_path, "inference", inference(model, {}, **{key: 3}))
    assert f"llm.{key}" in wrong
    assert "give it in `generate`" in wrong
    wrong = refusal(tmp_path, "inference", inference(model, {"sampling": {"negative_prompt": "x"}}))
    assert "sampling.negative_prompt: `negative_prompt` is no field of SamplingParams" in wrong
    assert "give it in `generate`" in wrong
