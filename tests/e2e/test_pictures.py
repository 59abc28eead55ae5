"""Pictures with the commands of docs/multimodal.md: drawn, trained, converted, served and asked."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flagscale.node import processes
from flagscale.run.rundir import RunDir
from flagscale_testing.ports import free_port
from tests.e2e.test_serve import has_vllm

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "examples/llava_onevision/conf"
QUESTION = "How many circles are there?"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def python(*words: object, cwd: Path) -> str:
    """Return what a tool of ours printed; it must succeed."""
    command = [sys.executable, str(ROOT / str(words[0])), *map(str, words[1:])]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model that was drawn for, trained for some iterations, and converted."""
    pytest.importorskip("megatron.energon", reason="the extra vlm is not installed (make test installs it)")
    folder = tmp_path_factory.mktemp("pictures")
    data, run = folder / "data", folder / "run"
    python("tools/datasets/pictures_demo.py", "--output", data, "--samples", 60, cwd=folder)
    python(
        *("run.py", "--config-path", CONF, "--config-name", "config", "action=test"),
        *(f"experiment.exp_dir={run}", "experiment.runner.nproc_per_node=1"),
        *(f"train.data.data_path={data / 'energon'}", "train.model.micro_batch_size=8"),
        *(f"train.data.tokenizer.tokenizer_model={data / 'tokenizer'}", "train.model.global_batch_size=8"),
        *("train.model.train_iters=6", "train.model.optimizer.lr_warmup_iters=1"),
        "train.system.logging.log_interval=1",
        cwd=folder,
    )
    python("tools/checkpoint/convert.py", "--load", run / "checkpoints", "--save", folder / "hf", cwd=folder)
    return folder


def test_a_small_model_is_trained_and_converted(trained: Path) -> None:
    lines = [json.loads(line) for line in RunDir(trained / "run").metrics.read_text().splitlines()]
    losses = [line["lm_loss"] for line in lines if "lm_loss" in line]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    names = {path.name for path in (trained / "hf").iterdir()}
    assert {"config.json", "chat_template.jinja", "preprocessor_config.json", "tokenizer.json"} <= names


def test_the_converted_model_computes_the_same_logits(trained: Path) -> None:
    folders = ("--load", trained / "run/checkpoints", "--save", trained / "again")
    # It writes nothing if they differ.
    python("tools/checkpoint/convert.py", *folders, "--verify-logits", cwd=trained)
    assert (trained / "again/config.json").is_file()


@dataclass(frozen=True)
class Served:
    """Models that a server answers for, by name: their folders, and the addresses of their APIs."""

    folders: dict[str, Path]
    urls: dict[str, str]


@pytest.fixture(scope="module")
def served(trained: Path) -> Iterator[Served]:
    """Serve the trained model, and one with another tower and language model, by one experiment."""
    if not has_vllm():
        pytest.skip("vLLM is not installed (make test installs it)")
    from flagscale_testing import llava_folders
    from flagscale_testing.llava_models import LlavaModel, small_vision
    from megatron.flagscale.convert.convert import convert

    with pytest.MonkeyPatch.context() as patch:
        model = LlavaModel(small_vision("clip", False, side=28), "Llama")
        patch.setitem(llava_folders.MODELS, "served", model)
        llava_folders.write_folder("served", trained / "other")
    # vLLM on CPU refuses heads of size 16: the same matrices are half as many of size 32.
    config = json.loads((trained / "other/config.json").read_text())
    config["text_config"] |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    (trained / "other/config.json").write_text(json.dumps(config))
    convert(trained / "other", trained / "other_megatron")
    convert(trained / "other_megatron", trained / "other_hf")
    folders = {"tiles": trained / "hf", "square": trained / "other_hf"}
    ports = dict(zip(folders, (free_port(), free_port()), strict=True))
    models = ",".join(f"{name}:{{model:{folders[name]},port:{port}}}" for name, port in ports.items())
    words = [
        *("run.py", "--config-path", CONF, "--config-name", "config_serve"),
        *(f"experiment.exp_dir={trained / 'serving'}", "experiment.runner.nproc_per_node=2"),
        *(f"+serve.models={{{models}}}", "~serve.model", "~serve.served_model_name", "~serve.port"),
    ]
    try:
        python(*words, "action=run", cwd=trained)
        yield Served(folders, {name: f"http://127.0.0.1:{port}/v1" for name, port in ports.items()})
        python(*words, "action=stop", cwd=trained)
    finally:
        plan = RunDir(trained / "serving").read_plan()
        processes.end(lambda: processes.of_run(plan.run_id) if plan else set(), grace=0)


def picture(width: int, height: int, seed: int) -> Any:
    """Return a picture of random colours."""
    import numpy as np
    from PIL import Image

    colours = np.random.RandomState(seed).randint(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(colours)


def encoded(image: Any, form: str) -> str:
    """Return a picture's bytes in base64."""
    held = io.BytesIO()
    image.save(held, form)
    return base64.b64encode(held.getvalue()).decode()


CASES = {
    "text": [],
    "one": [(56, 56)],
    "wide": [(110, 40)],
    "one pixel high": [(90, 1)],
    "large": [(170, 160)],
    "several": [(45, 33), (30, 90)],
}
"""The widths and heights of the pictures of a question."""


@pytest.mark.parametrize("name", ["tiles", "square"])
def test_served_answers_are_those_of_transformers(served: Served, name: str) -> None:
    import openai
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

    folder = served.folders[name]
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    processor.image_processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    client = openai.OpenAI(base_url=served.urls[name], api_key="none")
    cases: dict[str, tuple[str, list[Any]]] = {
        case: ("image", [picture(*size, seed) for seed, size in enumerate(sizes)])
        for case, sizes in CASES.items()
    }
    if name == "tiles":
        cases["video"] = ("video", [picture(50, 40, seed) for seed in range(4)])
    for case, (kind, pictures) in cases.items():
        urls = [f"data:image/png;base64,{encoded(one, 'PNG')}" for one in pictures]
        if kind == "video":
            urls = ["data:video/jpeg;base64," + ",".join(encoded(one, "JPEG") for one in pictures)]
        parts: Any = [{"type": f"{kind}_url", f"{kind}_url": {"url": url}} for url in urls]
        text = {"type": "text", "text": QUESTION}
        got: Any = client.chat.completions.create(
            model=name,
            messages=[{"role": "user", "content": [*parts, text]}],
            max_tokens=8,
            temperature=0,
            logprobs=True,
            extra_body={"return_token_ids": True, "ignore_eos": True},
        )
        message = {"role": "user", "content": [*[{"type": kind} for _ in urls], text]}
        prompt = processor.apply_chat_template([message], add_generation_prompt=True)
        inputs = processor(text=[prompt], return_tensors="pt", **_media(kind, pictures))
        with torch.no_grad():
            made = model.generate(
                **inputs,
                max_new_tokens=8,
                min_new_tokens=8,
                do_sample=False,
                eos_token_id=None,
                return_dict_in_generate=True,
                output_scores=True,
            )
        tokens = made.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        assert got.prompt_token_ids == inputs["input_ids"][0].tolist(), case
        assert got.choices[0].token_ids == tokens, case
        scored = zip(got.choices[0].logprobs.content, made.scores, tokens, strict=True)
        apart = [abs(one.logprob - scores[0].log_softmax(-1)[token].item()) for one, scores, token in scored]
        length = len(got.prompt_token_ids)
        print(f"{name:7} {case:15} {length:4} tokens, log probabilities differ by {max(apart):.0e}")
        assert max(apart) < 1e-4, case


def _media(kind: str, pictures: list[Any]) -> dict[str, Any]:
    """Return the pictures as a processor of transformers takes them."""
    import numpy as np
    from PIL import Image

    if not pictures:
        return {}
    if kind == "image":
        return {"images": pictures}
    frames = [
        Image.open(io.BytesIO(base64.b64decode(encoded(one, "JPEG")))).convert("RGB") for one in pictures
    ]
    return {"videos": [np.stack([np.asarray(frame) for frame in frames])]}


def test_a_picture_is_asked_about_from_a_file(served: Served, trained: Path) -> None:
    file = trained / "data/pictures/000000.png"
    python("tools/ask.py", QUESTION, "--image", file, "--url", served.urls["tiles"], cwd=trained)
    (trained / "cut.png").write_bytes(file.read_bytes()[:90])
    command = [sys.executable, str(ROOT / "tools/ask.py"), QUESTION, "--image", str(trained / "cut.png")]
    done = subprocess.run([*command, "--url", served.urls["tiles"]], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the server refused the request: ")


def test_a_batch_asks_about_files_beside_its_prompts(trained: Path) -> None:
    if not has_vllm():
        pytest.skip("vLLM is not installed (make test installs it)")
    question = {"type": "text", "text": QUESTION}
    urls = ["data/pictures/000000.png", f"file://{trained}/data/pictures/000001.png", "data/cut.png"]
    lines = [
        [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, question]}]
        for url in urls
    ]
    prompts = trained / "prompts.jsonl"
    prompts.write_text("\n".join(json.dumps({"messages": one, "id": at}) for at, one in enumerate(lines[:2])))
    words = [
        *("run.py", "--config-path", ROOT / "examples/aquila/conf", "--config-name", "config_inference"),
        *(f"experiment.exp_dir={trained / 'batch'}", f"inference.llm.model={trained / 'hf'}"),
        *("+inference.llm.mm_processor_kwargs.use_fast=false", "~inference.generate.prompts"),
        *(f"+inference.generate.prompts_file={prompts}", "inference.generate.sampling={max_tokens:4}"),
        "action=test",
    ]
    python(*words, cwd=trained)
    results = [
        json.loads(line) for line in (trained / "batch" / "results.jsonl").read_text("utf-8").splitlines()
    ]
    assert [result["messages"] for result in results] == lines[:2]
    assert all(result["prompt_tokens"] > 20 and result["outputs"] for result in results)
    assert "[image data/pictures/000000.png]" in (trained / "batch" / "results.txt").read_text("utf-8")

    (trained / "data/cut.png").write_bytes((trained / urls[0]).read_bytes()[:90])
    prompts.write_text(json.dumps({"messages": lines[2]}))
    command = [sys.executable, str(ROOT / str(words[0])), *map(str, words[1:])]
    done = subprocess.run(command, cwd=trained, capture_output=True, text=True)
    assert done.returncode != 0
    assert "prompt 0, image 1: Failed to load image" in done.stdout + done.stderr
