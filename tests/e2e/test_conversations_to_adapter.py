"""The commands of docs/instruction_tuning.md lead from a folder of conversations to a served adapter."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from flagscale.node import processes
from flagscale.run.env import import_path
from flagscale.run.rundir import RunDir
from flagscale_testing.ports import free_port
from tests.e2e.test_serve import ROOT, has_vllm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed (make test installs it)"),
    pytest.mark.timeout(3600),
]
PAGE = ROOT / "docs" / "instruction_tuning.md"
HEADING = "## From a folder of conversations to a served adapter in four commands"


def commands() -> list[list[str]]:
    """Return the commands below the heading, in the order of the page."""
    section = PAGE.read_text("utf-8").partition(f"{HEADING}\n")[2].partition("\n## ")[0]
    code = "".join(re.findall(r"^    .*\n", section, re.MULTILINE)).replace("\\\n", "")
    return [shlex.split(line) for line in code.splitlines()]


def command(words: Sequence[str], folder: Path) -> str:
    """Run a command in a folder as a user would; return what it prints."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=1200,
        env={**os.environ, "PYTHONPATH": import_path(str(ROOT))},
    )
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Path]:
    """A folder like a clone after `make demo`, with a random model of the demo's shape."""
    for name in ("examples", "tools", "run.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    texts = [{"text": f"from module_{n} import name_{n * n}. Which module has it?"} for n in range(400)]
    (tmp_path / "texts.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in texts))
    command(["tools/datasets/demo.py", "--source", "texts.jsonl"], tmp_path)
    write_demo_model(tmp_path / "random", tmp_path / "data" / "demo" / "tokenizer")
    command(
        ["tools/checkpoint/convert.py", "--load", "random", "--save", "outputs/aquila_demo/checkpoints"],
        tmp_path,
    )
    yield tmp_path
    for name in ("aquila_demo_lora", "aquila_demo_lora_serve"):
        if plan := RunDir(tmp_path / "outputs" / name).read_plan():
            processes.end(lambda run_id=plan.run_id: processes.of_run(run_id), grace=0)


def write_demo_model(folder: Path, tokenizer_folder: Path) -> None:
    """Write a random Llama with the shape in examples/aquila/conf/train/demo.yaml."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).float().save_pretrained(folder)


def by_peft(
    base: Path, adapter: Path | None, question: str, tokens: int
) -> tuple[list[int], list[float], Any]:
    """Return the ids that transformers answers, with an adapter by `peft`, their log-probabilities, and the
    tokenizer."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    tuned = model if adapter is None else peft.PeftModel.from_pretrained(model, adapter)
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_dict=False,
        return_tensors="pt",
    )
    out = tuned.generate(
        input_ids=asked,
        do_sample=False,
        max_new_tokens=tokens,
        output_logits=True,
        return_dict_in_generate=True,
    )
    ids = out.sequences[0, asked.shape[1] :]
    scores = [one[0].log_softmax(-1)[token].item() for one, token in zip(out.logits, ids, strict=True)]
    return ids.tolist(), scores, tokenizer


def test_the_commands_of_the_page(clone: Path) -> None:
    pytest.importorskip("peft", reason="peft is not installed (make test installs it)")
    import openai

    found = commands()
    assert [words[0] for words in found] == ["python"] * 7
    *four, ask, stop, prepare = (words[1:] for words in found)
    port = free_port()  # the only difference to the page: another test may use port 8000
    url = f"http://127.0.0.1:{port}/v1"

    command(prepare, clone)
    *others, serve = four
    for words in others:
        command(words, clone)
    losses = [record["lm_loss"] for record in metrics(clone / "outputs" / "aquila_demo_lora")]
    assert losses[-1] < losses[0] / 2
    command([*serve, f"serve.port={port}"], clone)
    answer = command([*ask, "--url", url], clone)

    base, adapter = clone / "outputs" / "aquila_demo" / "chat", clone / "outputs/aquila_demo_lora/adapter"
    ids, scores, tokenizer = by_peft(base, adapter, ask[1], tokens=64)
    assert answer == tokenizer.decode(ids, skip_special_tokens=True) + "\n"
    without, *_ = by_peft(base, None, ask[1], tokens=64)
    assert ids != without, "an adapter that changes nothing shows nothing"
    client = openai.OpenAI(base_url=url, api_key="none")
    served = client.chat.completions.create(
        model="tuned",
        messages=[{"role": "user", "content": ask[1]}],
        temperature=0,
        max_tokens=64,
        logprobs=True,
    )
    assert served.choices[0].logprobs
    found_scores = [one.logprob for one in served.choices[0].logprobs.content or ()]
    assert found_scores == pytest.approx(scores, abs=1e-3)
    command([*stop, f"serve.port={port}"], clone)


def metrics(run: Path) -> list[dict[str, Any]]:
    """Return the records of a training's iterations."""
    records = map(json.loads, RunDir(run).metrics.read_text().splitlines())
    return [record for record in records if "lm_loss" in record]
