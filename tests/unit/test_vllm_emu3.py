"""Batches of Emu3: what the launcher passes on, and what it refuses before anything starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flagscale.checks import emu3_vocabulary as names
from flagscale.checks.data import input_violations
from flagscale.checks.emu3 import NEGATIVE, SCALE
from flagscale.config.source_map import SourceMap
from flagscale.engines.vllm.emu3 import take_pictures
from flagscale.engines.vllm.generate import read_generate
from flagscale.errors import Problem
from flagscale.values import Job
from tests.unit.vllm_jobs import gpus, job_of, refusal

PNG = b"\x89PNG\r\n\x1a\n and so on"


@pytest.fixture
def model(tmp_path: Path, write_model: Callable[..., Path]) -> str:
    """A folder that the launcher takes for an Emu3 with 1024 positions and pictures of 48 x 64 pixels."""
    others = ("CODE", "CHAT_TEMPLATE")
    marks = [getattr(names, name) for name in dir(names) if name.isupper() and name not in others]
    words = [*marks, *(names.CODE.format(code) for code in range(64))]
    folder = write_model(
        tmp_path / "emu3",
        model_type="emu3",
        architectures=["Emu3ForConditionalGeneration"],
        vocabulary_map={word: number for number, word in enumerate(words)},
        vq_config={"codebook_size": 64},
        text_config={"max_position_embeddings": 1024, "vocab_size": len(words), "num_attention_heads": 4},
    )
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_area": 48 * 64}))
    return str(folder)


def inference(model: str, **generate: Any) -> dict[str, Any]:
    return {"llm": {"model": model}, "generate": {"mode": "image", "prompts": ["a", "b"], **generate}}


def word(job: Job, name: str, rank: int = 0) -> str:
    """Return the word after an argument of the program."""
    argv = job.services[rank][0].argv
    return argv[argv.index(name) + 1]


def test_pictures(tmp_path: Path, model: str) -> None:
    sampling = {"top_k": 2048, "max_tokens": 40960, "n": 2}
    job = job_of(tmp_path, "inference", inference(model, ratios=["1:1", "16:9"], sampling=sampling))
    assert json.loads(word(job, "--emu3")) == {"mode": "image", "ratios": ["1:1", "16:9"]}
    assert json.loads(word(job, "--guidance-keys")) == {"guidance_scale": SCALE, "negative_prompt": NEGATIVE}
    assert json.loads(word(job, "--sampling")) == {"top_k": 2048, "n": 2}
    assert word(job, "--pictures") == str(tmp_path / "run" / "pictures")
    (notice,) = [notice for notice in job.notices if "max_tokens" in notice]
    assert "the number of tokens is computed" in notice


def test_own_guidance_and_output_of_several_hosts(tmp_path: Path, model: str) -> None:
    keys = {"sizes": "64x48", "guidance_scale": 1, "output": str(tmp_path / "cats.jsonl")}
    job = job_of(tmp_path, "inference", inference(model, **keys), gpus(1, 1))
    assert json.loads(word(job, "--emu3")) == {"mode": "image", "sizes": ["64x48"]}
    assert json.loads(word(job, "--guidance-keys"))["guidance_scale"] == 1
    assert word(job, "--pictures", 1) == str(tmp_path / "cats_pictures_1")
    assert word(job, "--output", 1) == str(tmp_path / "cats_1.jsonl")


def test_questions(tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.png").write_bytes(PNG)
    job = job_of(tmp_path, "inference", inference(model, mode="understand", images="a.png"))
    assert json.loads(word(job, "--emu3")) == {"mode": "understand"}
    assert word(job, "--images") == str(tmp_path / "a.png")
    assert "--pictures" not in job.services[0][0].argv
    assert [*input_violations(job.inputs)] == []
    Path("a.png").unlink()
    ((_, missing),) = input_violations(job.inputs)
    assert "a.png: no such file" in missing


@pytest.mark.parametrize(
    ("generate", "reported"),
    [
        ({}, "needs `ratios`"),
        ({"mode": "draw"}, "`mode` takes image or understand, not 'draw'"),
        ({"mode": None, "ratios": ["1:1"]}, "`ratios` needs `mode: image`"),
        ({"ratios": ["1:1"] * 3}, "holds 3 values for 2 prompts"),
        ({"ratios": ["1:1", "16/9"]}, "`ratio` takes a text such as"),
        ({"ratios": 61}, "put ratios in quotes"),
        ({"ratio": "1:1"}, "did you mean `ratios`?"),
        ({"ratios": []}, "takes one text for all prompts or a list"),
        ({"ratios": "1:1", "sizes": "64x48"}, "give either `ratios` or `sizes`"),
        ({"sizes": "100x48"}, "such as `96x48`"),
        ({"sizes": "1280x720"}, "does not fit the model's 1024 positions"),
        ({"ratios": "1:1", "images": "a.png"}, "`images` has no effect with `mode: image`"),
        ({"ratios": "1:1", "chat": True}, "`chat` has no effect with `mode: image`"),
        ({"ratios": "1:1", "guidance_scale": -1}, "`guidance_scale` takes a number of at least 0"),
        ({"ratios": "1:1", "sampling": {"stop": ["x"]}}, "`stop` cannot be used for pictures"),
        ({"ratios": "1:1", "sampling": {"n": 2, "temperature": 0}}, "gives the same answer each time"),
        ({"ratios": "1:1", "guidance_scale": 10**400}, "`guidance_scale` takes at most 1000000"),
        ({"ratios": "1:1", "output": "cats.html"}, "name a .jsonl file"),
        ({"mode": "understand"}, "needs `images`"),
        ({"mode": "understand", "images": "absent.png"}, "absent.png: no such file"),
        ({"mode": "understand", "images": __file__}, "not a picture"),
        ({"mode": "understand", "images": __file__, "guidance_scale": 2}, "has no effect with"),
    ],
)
def test_wrong_batches(tmp_path: Path, model: str, generate: dict[str, Any], reported: str) -> None:
    assert reported in refusal(tmp_path, "inference", inference(model, **generate))


def test_the_folders_sampling_values_are_those_of_texts(tmp_path: Path, model: str) -> None:
    (Path(model) / "generation_config.json").write_text('{"temperature": 0, "repetition_penalty": 1.3}')
    job = job_of(tmp_path, "inference", inference(model, ratios="1:1", sampling={"n": 2}))
    assert not [notice for notice in job.notices if "repetition_penalty" in notice]
    task = inference(model, ratios="1:1")
    task["llm"]["override_generation_config"] = {"temperature": 0.5}
    assert "`override_generation_config` has no effect on pictures" in refusal(tmp_path, "inference", task)


def test_all_mistakes_at_once(tmp_path: Path, write_model: Callable[..., Path]) -> None:
    other = str(write_model(tmp_path / "llama", model_type="llama"))
    text = refusal(tmp_path, "inference", inference(other, ratios=["1:1", "1;1"], sampling={"stop": ["x"]}))
    assert all(part in text for part in ("is not an Emu3", "`stop` cannot be used for pictures"))


@pytest.mark.parametrize(
    "generate",
    [
        {"mode": "images", "guidance_scale": 3},
        {"mode": "understand", "images": __file__, "guidance_scale": 3},
        {"ratios": ["1:1", "16:9"], "prompts": "a cat"},
        {"ratios": ["1:1", "16:9"], "prompts": []},
    ],
)
def test_a_mistake_is_reported_once(tmp_path: Path, model: str, generate: dict[str, Any]) -> None:
    if "images" in generate:
        (tmp_path / "a.png").write_bytes(PNG)
        generate = generate | {"images": str(tmp_path / "a.png")}
    text = refusal(tmp_path, "inference", inference(model, **generate))
    assert sum(line.startswith("- ") for line in text.splitlines()) == 1


@pytest.mark.parametrize("unread", ["ratios.0", "mode", "prompts", "prompts_file"])
def test_no_mistake_follows_from_a_key_that_cannot_be_read(unread: str) -> None:
    path = "inference.generate"
    source_map = SourceMap(unreadable=frozenset({f"{path}.{unread}"}))
    raw = {"mode": "image", "prompts": ["a"], "ratios": ["1:1"], "guidance_scale": 3}
    raw.pop(unread.removesuffix("_file").partition(".")[0])
    problems: list[Problem] = []
    _, rest = take_pictures(path, raw, None, source_map, problems, [])
    read_generate(path, rest, source_map, problems)
    assert problems == []


@pytest.mark.parametrize("name", ["BAAI/Emu3-Gen", "BAAI/Emu3-Chat", "BAAI/Emu3-VisionTokenizer"])
def test_original_models_are_refused_with_the_way(tmp_path: Path, name: str) -> None:
    text = refusal(tmp_path, "inference", inference(name, ratios="1:1"))
    assert text.count(f"inference.llm.model: {name}") == 1
    assert "-hf" in text
    assert f"serve.model: {name}" in refusal(tmp_path, "serve", {"model": name})
    text = refusal(tmp_path, "inference", inference("BAAI/Emu3-Stage1", ratios="1:1"))
    assert "tools/emu3/convert.py" in text
    assert job_of(tmp_path, "inference", inference("BAAI/Emu3-Gen-hf", ratios="1:1"))
    assert job_of(tmp_path, "serve", {"model": "BAAI/Emu3-Gen-hf"})


def test_original_folders_are_refused_with_the_way(tmp_path: Path, write_model: Callable[..., Path]) -> None:
    auto_map = {"AutoConfig": "configuration_emu3.Emu3Config"}
    folder = str(write_model(tmp_path / "original", model_type="Emu3", auto_map=auto_map))
    way = "convert it with tools/emu3/convert.py"
    drawing, text = (
        inference(folder, ratios="1:1"),
        {"llm": {"model": folder}, "generate": {"prompts": ["a"]}},
    )
    for kind, task in (("inference", drawing), ("inference", text), ("serve", {"model": folder})):
        assert refusal(tmp_path, kind, task).count(way) == 1


@pytest.mark.parametrize("is_published", [True, False])
@pytest.mark.parametrize("degree", ["tensor_parallel_size", "pipeline_parallel_size"])
def test_emu3_is_not_divided(tmp_path: Path, model: str, degree: str, is_published: bool) -> None:
    name = "BAAI/Emu3-Gen-hf" if is_published else model
    batch = inference(name, sizes="64x48")
    batch["llm"][degree] = 2
    for kind, task in (("inference", batch), ("serve", {"model": name, degree: 2})):
        text = refusal(tmp_path, kind, task, gpus(2))
        assert f"{degree}: `{degree}` 2 is not supported with Emu3" in text


def test_a_server_of_emu3_obeys_the_rules_of_guidance_without_the_key(tmp_path: Path, model: str) -> None:
    wrong = {"scheduler_cls": "a.b.C"}
    asks = {"llm": {"model": model, **wrong}, "generate": {"prompts": ["a"]}}
    for kind, task in (("serve", {"model": model, **wrong}), ("inference", asks)):
        assert "`scheduler_cls` cannot be combined with guidance" in refusal(tmp_path, kind, task)
    assert "--guidance" not in job_of(tmp_path, "serve", {"model": model}).services[0][0].argv


def test_lines_of_a_file(tmp_path: Path, model: str) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    file = tmp_path / "prompts.jsonl"
    good = [
        {"prompt": "a", "ratio": "16:9", "guidance_scale": 2},
        {"prompt": "b", "size": "64x48", "negative_prompt": "c", "id": 7},
    ]
    file.write_text("\n".join(map(json.dumps, good)))
    keys = {"prompts": None, "prompts_file": str(file)}
    assert job_of(tmp_path, "inference", inference(model, **keys))
    bad = [
        {"prompt": "a"},
        {"prompt": "a", "ratio": "1:1", "size": "64x48"},
        {"prompt": "a", "ratio": 969},
        {"prompt": "a", "size": "800x800"},
        {"messages": [{"role": "user", "content": "a"}], "ratio": "1:1"},
        {"prompt": ""},
        {"prompt": "a", "ratio": "1:1", "ratios": "1:1"},
    ]
    file.write_text("\n".join(map(json.dumps, bad)))
    text = refusal(tmp_path, "inference", inference(model, **keys))
    reported = ["needs `ratio` or", "either `ratio` or", "not 969", "does not fit", "needs `prompt`"]
    reported += ["`prompt` must be non-empty", "a line takes `ratio`"]
    for number, what in enumerate(reported, start=1):
        assert what in next(line for line in text.splitlines() if f"{file}:{number}: " in line)
    asked = [{"prompt": "a", "image": "a.png"}, {"prompt": "a", "image": "b.png"}, {"prompt": "a"}]
    file.write_text("\n".join(map(json.dumps, asked)))
    text = refusal(tmp_path, "inference", inference(model, mode="understand", **keys))
    assert f"{file}:1: " not in text
    assert "b.png: no such file" in text
    assert f"{file}:3: needs `image`" in text


def test_a_server_of_emu3_guides_whatever_its_keys_say(tmp_path: Path, model: str) -> None:
    text = refusal(tmp_path, "serve", {"model": model, "guidance": False})
    assert "serve.guidance: Emu3 always draws with guidance" in text
    text = refusal(tmp_path, "serve", {"model": model, "max_num_seqs": 1})
    assert "a guided request takes two places" in text


@pytest.mark.parametrize("name", ["BAAI/Emu3-Gen", "Emu3", "Emu3VisionVQ"])
def test_a_server_refuses_original_models_with_the_way(
    tmp_path: Path, write_model: Callable[..., Path], name: str
) -> None:
    given = name if "/" in name else str(write_model(tmp_path / "original", model_type=name))
    text = refusal(tmp_path, "serve", {"model": given})
    assert f"serve.model: {given}" in text
    assert "tools/emu3/convert.py" in text
