"""Real engines with the README's command: vLLM serves, and generates with, a model that the test makes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from flagscale.engines.vllm.adapter import VLLM
from flagscale.node import processes
from flagscale.node.network import is_free
from flagscale.run.rundir import RunDir
from flagscale_testing.engines import ENVIRONMENT
from flagscale_testing.guided import Size, make_llama
from flagscale_testing.ports import free_port
from tests.e2e.conftest import wait_until
from tools.install_vllm import installed

ROOT = Path(__file__).resolve().parents[2]
KEY = "a key that no process shows"


def has_vllm() -> bool:
    return any(map(installed, VLLM.distributions))


pytestmark = [
    pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed (make test installs it)"),
    pytest.mark.timeout(900),
]


@dataclass(frozen=True)
class Run:
    """An example config of vLLM with its own run directory."""

    config: str
    exp_dir: Path
    overrides: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)

    def __call__(self, action: str, *more: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        words = [
            *(sys.executable, str(ROOT / "run.py"), "--config-path", str(ROOT / "examples/aquila/conf")),
            *("--config-name", self.config, f"experiment.exp_dir={self.exp_dir}", *self.overrides),
        ]
        return subprocess.run(
            [*words, f"action={action}", *more],
            env={**os.environ, **ENVIRONMENT, **self.env},
            cwd=self.exp_dir.parent,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self("query", "output=json").stdout))

    def processes(self) -> set[psutil.Process]:
        plan = RunDir(self.exp_dir).read_plan()
        return processes.of_run(plan.run_id) if plan else set()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "a llama"
    make_model(folder)
    return folder


def make_model(folder: Path) -> None:
    """Make a random Llama with a chat template, and with sampling values in its folder."""
    make_llama(folder, Size(vocabulary=320, hidden=128, layers=2, positions=256))
    own = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**own, **GENERATION}))


GENERATION = {"repetition_penalty": 1.3, "temperature": 0.7, "max_new_tokens": 40}
PROMPTS = ["def main(", "The quick brown fox", "import os\n", "0123456789"]
QUESTION = [{"role": "user", "content": "What is the time?"}]


@pytest.fixture
def make_run(tmp_path: Path, model: Path) -> Iterator[Callable[..., Run]]:
    made: list[Run] = []

    def make(config: str, *overrides: str, **env: str) -> Run:
        made.append(Run(config, tmp_path / "run", overrides, env))
        return made[-1]

    yield make
    for run in made:
        processes.end(run.processes, grace=0)


def test_a_served_model_answers_and_leaves_no_processes(make_run: Callable[..., Run], model: Path) -> None:
    import openai

    port = free_port()
    run = make_run("config_serve", f"serve.model='{model}'", f"serve.port={port}", f"+serve.api_key='{KEY}'")
    started = run("run")
    assert started.returncode == 0, started.stderr
    assert f"http://127.0.0.1:{port}/v1" in started.stdout

    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY)
    answer = client.completions.create(model="aquila", prompt="hello", max_tokens=8, temperature=0)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8
    answered_as_transformers(client, model)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=client.base_url, api_key="wrong").models.list()
    with pytest.raises(openai.NotFoundError, match="the model draws no pictures"):
        client.images.generate(prompt="a cat")
    every = " ".join(word for one in run.processes() for word in one.cmdline())
    kept = "".join(path.read_text(errors="replace") for path in run.exp_dir.rglob("*") if path.is_file())
    assert KEY not in every + kept

    status = run.status()
    (server,) = status["programs"]
    assert (status["state"], server["phase"], server["model"]) == ("running", "ready", "aquila")
    # The reported figures may be some seconds old, from the time of the request above.
    wait_until(lambda: run.status()["programs"][0]["requests_running"] == 0, 30)
    logs = run("logs").stdout
    assert "Resolved architecture" in logs
    assert "present in the request but ignored: {'max_new_tokens'}" in logs
    assert "POST /v1/completions" in logs
    assert [line for line in logs.splitlines() if "GET /health" in line or "GET /metrics" in line] == []
    again = run("run")
    assert again.returncode == 1
    assert "a job is still running" in again.stderr

    os.kill(server["pid"], signal.SIGKILL)
    killed = time.monotonic()
    while run.processes():
        assert time.monotonic() - killed < 30
        time.sleep(0.2)
    assert is_free("127.0.0.1", port)
    reported = run("query")
    assert reported.returncode == 1
    assert "`server` was killed by SIGKILL" in reported.stdout
    assert run("stop").returncode == 0


@pytest.mark.slow
def test_two_instances_answer_at_one_address_while_they_die_in_turn(
    make_run: Callable[..., Run], model: Path
) -> None:
    import openai

    port = free_port()
    run = make_run(
        "config_serve",
        *(f"serve.model='{model}'", f"serve.port={port}", f"+serve.api_key='{KEY}'", "+serve.instances=2"),
        *("+experiment.runner.nproc_per_node=2", "+experiment.runner.max_restarts=1"),
    )
    started = run("run")
    assert started.returncode == 0, started.stderr
    assert started.stdout.count("/v1") == 1
    assert f"http://127.0.0.1:{port}/v1" in started.stdout
    url = f"http://127.0.0.1:{port}/v1"
    client = openai.OpenAI(base_url=url, api_key=KEY, max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=url, api_key="wrong").models.list()
    assert client.models.list().data[0].id == "aquila"
    every = " ".join(word for one in run.processes() for word in one.cmdline())
    kept = "".join(path.read_text(errors="replace") for path in run.exp_dir.rglob("*") if path.is_file())
    assert KEY not in every + kept

    def phases() -> dict[str, str]:
        return {one["name"]: one["phase"] for one in run.status()["programs"]}

    assert phases() == dict.fromkeys(("server", "server.0", "server.1"), "ready")
    answers: list[int] = []
    is_over = threading.Event()

    def complete() -> None:
        settings: dict[str, Any] = {"max_tokens": 16, "temperature": 0, "extra_body": {"ignore_eos": True}}
        while not is_over.is_set():
            answer = client.completions.create(model="aquila", prompt="hello", **settings)
            answers.append(answer.usage.completion_tokens if answer.usage else 0)

    with ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(complete) for _ in range(4)]
        try:
            wait_until(lambda: len(answers) > 8, 60)
            victim = next(one for one in run.status()["programs"] if one["name"] == "server.0")
            os.kill(victim["pid"], signal.SIGKILL)
            wait_until(lambda: phases()["server.0"] != "ready", 30)
            killed = len(answers)
            wait_until(lambda: len(answers) > killed + 8, 60)
            wait_until(lambda: phases()["server.0"] == "ready", 300)
            # A server whose engine dies answers with status 500.
            other = next(one for one in run.status()["programs"] if one["name"] == "server.1")
            parts = psutil.Process(other["pid"]).children(recursive=True)
            (engine,) = [one for one in parts if "EngineCore" in one.cmdline()[0]]
            engine.kill()
            wait_until(lambda: phases()["server.1"] != "ready", 60)
            killed = len(answers)
            wait_until(lambda: len(answers) > killed + 8, 60)
        finally:
            is_over.set()
    for one in clients:
        one.result()  # raises what its client saw
    assert set(answers) == {16}

    pieces = client.completions.create(
        model="aquila", prompt="hello", max_tokens=200, stream=True, extra_body={"ignore_eos": True}
    )
    first = next(iter(pieces))
    assert first.choices[0].finish_reason is None
    with ThreadPoolExecutor(1) as pool:
        stopped = pool.submit(run, "stop")
        *_, last = pieces
        assert last.choices[0].finish_reason == "length"
        assert stopped.result().returncode == 0
    assert not run.processes()


@pytest.mark.slow
def test_the_error_of_the_engine_and_a_port_in_use_are_reported(
    make_run: Callable[..., Run], model: Path
) -> None:
    port = free_port()
    run = make_run("config_serve", f"serve.model='{model}'", f"serve.port={port}", "+serve.quantization=awq")
    failed = run("run")
    assert failed.returncode == 1
    assert "`server` ended with exit code 1" in failed.stderr
    assert "Cannot find the config file for awq" in failed.stderr
    assert not run.processes()
    with socket.create_server(("127.0.0.1", port)):
        taken = run("run")
    assert taken.returncode == 1
    assert f"port {port} is in use" in taken.stderr


@pytest.mark.slow
def test_a_greedy_batch_generates_the_tokens_of_transformers(
    make_run: Callable[..., Run], model: Path, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.jsonl"
    lines = [{"prompt": text, "id": text[0]} for text in PROMPTS] + [{"messages": QUESTION}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = make_run(
        "config_inference",
        f"inference.llm.model='{model}'",
        "~inference.generate.prompts",
        f"+inference.generate.prompts_file='{file}'",
        "+inference.generate.batch_size=3",
        "~inference.generate.sampling",
        "+inference.generate.sampling={temperature: 0, ignore_eos: true}",
    )
    done = run("test")
    assert done.returncode == 0, done.stdout + done.stderr
    results = [json.loads(line) for line in (run.exp_dir / "results.jsonl").read_text().splitlines()]
    assert [(one["index"], one["prompt"], one["id"]) for one in results[:4]] == [
        (number, text, text[0]) for number, text in enumerate(PROMPTS)
    ]
    assert "5/5 prompts" in done.stdout
    taken = "repetition_penalty 1.3, max_tokens 40"
    assert f"sets {taken} (chats) for all prompts" in done.stderr
    assert f"generation configuration: {taken}" in run("logs").stdout
    assert "=== 3\n0123456789\n--- length\n" in (run.exp_dir / "results.txt").read_text()
    expected = [*greedy(model, PROMPTS, 16), *greedy(model, [QUESTION], 40)]
    assert [one["outputs"][0]["token_ids"] for one in results] == expected


def answered_as_transformers(client: Any, model: Path) -> None:
    """The server answers as a batch does, which `transformers` is compared with in both tests."""
    how: Any = {
        "model": "aquila",
        "temperature": 0,
        "extra_body": {"return_token_ids": True, "ignore_eos": True, "max_new_tokens": 3},
    }
    plain = [client.completions.create(prompt=text, **how).choices[0].token_ids for text in PROMPTS]
    chat = client.chat.completions.create(messages=QUESTION, **how).choices[0].token_ids
    assert plain == greedy(model, PROMPTS, 16)
    assert [chat] == greedy(model, [QUESTION], 40)


def greedy(model: Path, prompts: list[Any], tokens: int) -> list[list[int]]:
    """Return the tokens with which `transformers` continues texts or chats, with the folder's penalty."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    found = []
    for prompt in prompts:
        is_text = isinstance(prompt, str)
        ids = (
            tokenizer.encode(prompt) if is_text else tokenizer.apply_chat_template(prompt, return_dict=False)
        )
        out = loaded.generate(
            torch.tensor([ids]),
            do_sample=False,
            repetition_penalty=GENERATION["repetition_penalty"],
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            eos_token_id=None,
        )
        found.append(out[0, len(ids) :].tolist())
    return found
