"""Guidance with the commands of docs/guidance.md: a server, and a batch, compared with transformers."""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flagscale.node import processes
from flagscale.run.rundir import RunDir
from flagscale_testing.engines import ENVIRONMENT
from flagscale_testing.guided import Case, byte_level_tokenizer, greedy_answers, make_llama
from flagscale_testing.ports import free_port
from tests.e2e.conftest import wait_until
from tests.e2e.test_serve import has_vllm

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed (make test installs it)"),
    pytest.mark.timeout(3600),
]
TEXT, NEGATIVE = "def main(", "Bad answer"
CHAT = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "What is the time?"}]
ANSWER = {"max_tokens": 12, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
KEY = {"Authorization": "Bearer secret"}
GUIDED = {"guidance_scale": 3.0, "negative_prompt": NEGATIVE}
ENGINE = re.compile(r'engine="(\d+)"')


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model `m`."""
    folder = tmp_path_factory.mktemp("guidance")
    make_llama(folder / "m")
    return folder


def run(folder: Path, config: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "run.py"), "--config-path", str(ROOT / "examples/aquila/conf")]
    command += ["--config-name", config, *words]
    environment = {**os.environ, **ENVIRONMENT}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@contextmanager
def served(folder: Path, exp_dir: Path, *words: str) -> Iterator[str]:
    """Serve the model with guidance in the meantime; return the address."""
    port = free_port()
    key = KEY["Authorization"].removeprefix("Bearer ")
    own = [f"experiment.exp_dir={exp_dir}", f"serve.model={folder / 'm'}", f"serve.port={port}"]
    own += [f"+serve.api_key={key}", "+serve.guidance=true", *words]
    try:
        started = run(folder, "config_serve", *own, "action=run")
        assert started.returncode == 0, started.stdout + started.stderr
        yield f"http://127.0.0.1:{port}"
    finally:
        if plan := RunDir(exp_dir).read_plan():
            processes.end(lambda: processes.of_run(plan.run_id), grace=0)


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    """The address of a server with room for 3 x 128 tokens: requests wait and lose places."""
    with served(folder, folder / "serve", "+serve.num_gpu_blocks_override=4") as address:
        yield address


def plain(text: str) -> tuple[int, ...]:
    return tuple(byte_level_tokenizer().encode(text))


def templated(messages: list[dict[str, str]]) -> tuple[int, ...]:
    text = "".join(f"[{one['role']}]{one['content']}" for one in messages)
    return tuple(byte_level_tokenizer().encode(text, add_special_tokens=False))


NEGATIVE_CHAT = [CHAT[0], {"role": "user", "content": NEGATIVE}]


def post(url: str, route: str, **body: Any) -> tuple[int, Any]:
    import httpx

    answer = httpx.post(f"{url}/v1/{route}", json={"model": "aquila", **body}, headers=KEY, timeout=120)
    return answer.status_code, answer.json()


def tokens(answer: tuple[int, Any]) -> list[list[int]]:
    status, body = answer
    assert status == 200, body
    return [choice["token_ids"] for choice in body["choices"]]


def test_a_server_answers_as_transformers(url: str, folder: Path) -> None:
    cases = [
        Case(plain(TEXT), plain(NEGATIVE), 3.0),
        Case(templated(CHAT), templated(NEGATIVE_CHAT), 3.0),
        Case(plain(TEXT), plain(NEGATIVE), 1.0),
    ]
    guided, chat, ordinary = greedy_answers(folder / "m", cases, ANSWER["max_tokens"])
    assert guided != ordinary
    how = {"prompt": TEXT, **ANSWER}
    assert tokens(post(url, "completions", **how, **GUIDED)) == [guided]
    ids = {**GUIDED, "negative_prompt": list(plain(NEGATIVE))}
    assert tokens(post(url, "completions", **how, **ids)) == [guided]
    both = {**how, "prompt": [TEXT, TEXT]}
    assert tokens(post(url, "completions", **both, **GUIDED)) == [guided, guided]
    assert tokens(post(url, "chat/completions", messages=CHAT, **ANSWER, **GUIDED)) == [chat]
    assert tokens(post(url, "completions", **how, **{**GUIDED, "guidance_scale": 1})) == [ordinary]
    assert tokens(post(url, "completions", **how)) == [ordinary]
    inner = {"guidance_scale": 3.0, "negative_prompt_token_ids": list(plain(NEGATIVE))}
    assert tokens(post(url, "completions", **how, vllm_xargs=inner)) == [guided]
    assert streamed(url, **how, **GUIDED) == guided
    several = {**how, "temperature": 1.0, "n": 2, "seed": 5, **GUIDED}
    first, again = (tokens(post(url, "completions", **several)) for _ in range(2))
    assert first == again
    assert first[0] != first[1]


def streamed(url: str, **body: Any) -> list[int]:
    import httpx

    found: list[int] = []
    request = {"model": "aquila", "stream": True, **body}
    with httpx.stream("POST", f"{url}/v1/completions", json=request, headers=KEY, timeout=120) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                found += json.loads(line[6:])["choices"][0]["token_ids"]
    return found


REFUSED: list[tuple[str, dict[str, Any], str, str]] = [
    # route, changes to the request, the field that is blamed, a part of the message
    ("completions", {"guidance_scale": -1}, "guidance_scale", "at least 0, not -1"),
    ("completions", {"guidance_scale": "3"}, "guidance_scale", "takes a number"),
    ("completions", {"guidance_scale": None}, "negative_prompt", "needs `guidance_scale`"),
    ("completions", {"negative_prompt": None}, "guidance_scale", "needs `negative_prompt`"),
    ("completions", {"negative_prompt": ""}, "negative_prompt", "not empty"),
    ("completions", {"negative_prompt": [640]}, "negative_prompt", "640 is not an id of the model's 640"),
    ("completions", {"negative_prompt": "x" * 300}, "negative_prompt", "maximum context length"),
    ("completions", {"repetition_penalty": 1.2}, "repetition_penalty", "set it to 1"),
    ("completions", {"use_beam_search": True}, "use_beam_search", "beam search"),
    ("chat/completions", {"negative_prompt": [5] * 256}, "negative_prompt", "256 tokens; the limit is 256"),
    ("chat/completions", {"messages": CHAT[:1]}, "negative_prompt", "this chat has none"),
    (
        "completions",
        {"prompt": "a" * 150, "negative_prompt": "b" * 150},
        "negative_prompt",
        "do not fit into",
    ),
    ("responses", {"input": "x"}, "guidance_scale", "not supported by /v1/responses"),
]


def test_wrong_requests_are_refused_and_the_server_goes_on(url: str) -> None:
    import httpx

    for route, changes, param, message in REFUSED:
        status, body = post(url, route, **{"prompt": TEXT, "messages": CHAT, **GUIDED, **changes})
        assert status == 400, (changes, body)
        assert body["error"]["param"] == param, body
        assert message in body["error"]["message"]
    unknown = {"guidance_scale": 3.0, "negative_prompt_token_ids": [640]}
    status, body = post(url, "completions", prompt=TEXT, vllm_xargs=unknown)
    assert (status, body["error"]["param"]) == (400, "vllm_xargs")
    large = {"guidance_scale": 3.0, "negative_prompt_token_ids": [5] * 250}
    status, body = post(url, "completions", prompt="a" * 150, vllm_xargs=large)
    assert (status, body["error"]["param"]) == (400, "vllm_xargs")
    assert "do not fit into the KV cache" in body["error"]["message"]
    without_key = httpx.post(f"{url}/v1/completions", json={"prompt": TEXT, **GUIDED, "guidance_scale": -1})
    assert without_key.status_code == 401
    # What vLLM refuses, it refuses as always.
    assert post(url, "completions", prompt=TEXT, temperature="hot", **GUIDED)[1]["error"]["param"] == (
        "body.temperature"
    )
    assert post(url, "chat/completions", messages="x", **GUIDED)[1]["error"]["param"] == "body.messages"
    assert tokens(post(url, "completions", prompt=TEXT, **ANSWER, **GUIDED))


@pytest.mark.parametrize("clients", [200])
def test_nothing_is_left_of_clients_that_disconnect(url: str, clients: int) -> None:
    asyncio.run(leave(url, clients))

    def is_idle() -> bool:
        import httpx

        lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
        counts = [
            line
            for line in lines
            if line.startswith(("vllm:num_requests_running", "vllm:num_requests_waiting{"))
        ]
        return len(counts) == 2 and all(line.endswith(" 0.0") for line in counts)

    wait_until(is_idle, 60)
    assert tokens(post(url, "completions", prompt=TEXT, **ANSWER, **GUIDED))


async def leave(url: str, clients: int) -> None:
    """Let clients end their connections after some time, or after some tokens."""
    import httpx

    rng = random.Random(1)
    body = {"model": "aquila", "prompt": TEXT, "max_tokens": 200, "ignore_eos": True, **GUIDED}

    async def one(client: httpx.AsyncClient, seconds: float, is_streamed: bool, n: int) -> None:
        request = {**body, "stream": is_streamed, "n": n}
        try:
            await client.post(f"{url}/v1/completions", json=request, headers=KEY, timeout=seconds)
        except httpx.TimeoutException:
            pass

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(limits=limits) as client:
        plans = [(rng.uniform(0.01, 0.8), rng.random() < 0.5, rng.choice((1, 2))) for _ in range(clients)]
        for start in range(0, clients, 30):
            await asyncio.gather(*(one(client, *plan) for plan in plans[start : start + 30]))


def test_two_data_parallel_engines_answer_as_transformers(folder: Path) -> None:
    prompts = [f"{TEXT}{number}" for number in range(8)]
    cases = [Case(plain(text), plain(NEGATIVE), 3.0) for text in prompts]
    with served(
        folder, folder / "two", "+serve.data_parallel_size=2", "+experiment.runner.nproc_per_node=2"
    ) as url:
        asked = {**ANSWER, **GUIDED, "prompt": prompts}
        assert tokens(post(url, "completions", **asked)) == greedy_answers(folder / "m", cases, 12)
        assert engines_that_answered(url) == {"0", "1"}


def engines_that_answered(url: str) -> set[str]:
    import httpx

    lines = httpx.get(f"{url}/metrics", timeout=60).text.splitlines()
    counts = [line for line in lines if line.startswith("vllm:request_success_total{")]
    return {found[1] for line in counts if not line.endswith(" 0.0") and (found := ENGINE.search(line))}


def test_a_batch_answers_as_transformers(folder: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"prompt": TEXT},
        {"prompt": TEXT, "guidance_scale": 1, "id": "ordinary"},
        {
            "prompt_token_ids": list(plain(TEXT)),
            "negative_prompt": list(plain("Worse")),
            "guidance_scale": 0.5,
        },
        {"prompt": TEXT, "negative_prompt": "Worse"},
        {"messages": CHAT},
    ]
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = run(
        folder,
        "config_inference",
        f"experiment.exp_dir={folder / 'batch'}",
        f"inference.llm.model={folder / 'm'}",
        "~inference.generate.prompts",
        f"+inference.generate.prompts_file={file}",
        "+inference.generate.guidance_scale=3.0",
        f"+inference.generate.negative_prompt='{NEGATIVE}'",
        "~inference.generate.sampling",
        "+inference.generate.sampling={temperature: 0, ignore_eos: true, max_tokens: 12}",
        "action=test",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = RunDir(folder / "batch").results
    records = [json.loads(line) for line in Path(results).read_text().splitlines()]
    cases = [
        Case(plain(TEXT), plain(NEGATIVE), 3.0),
        Case(plain(TEXT), plain(NEGATIVE), 1.0),
        Case(plain(TEXT), plain("Worse"), 0.5),
        Case(plain(TEXT), plain("Worse"), 3.0),
        Case(templated(CHAT), templated(NEGATIVE_CHAT), 3.0),
    ]
    assert [one["outputs"][0]["token_ids"] for one in records] == greedy_answers(folder / "m", cases, 12)
    for line, record in zip(lines, records, strict=True):
        assert line.items() <= record.items()
