"""Emu3 over HTTP: one server, started by `run.py`: pictures, chats about pictures, and clients that go."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flagscale.checks import emu3_vocabulary as names
from flagscale.node import health, processes
from flagscale.run.env import import_path
from flagscale.run.rundir import RunDir
from flagscale_testing.emu3 import make_emu3
from flagscale_testing.engines import ENVIRONMENT
from flagscale_testing.ports import free_port
from tests.e2e.conftest import wait_until
from tests.e2e.test_serve import has_vllm

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed (make test installs it)"),
    pytest.mark.timeout(3600),
]
KEY = "a key"
PROMPT, NEGATIVE = "a shiba inu in the snow", "lowres, blurry"
TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ part['text'] + ' ' }}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""In the form of published folders: it begins without BOS, which transformers' processor adds."""


@dataclass(frozen=True)
class Server:
    """A running server of a tiny Emu3, and its model folder."""

    model: Path
    url: str
    exp_dir: Path

    def run(self, action: str) -> subprocess.CompletedProcess[str]:
        words = [
            *(sys.executable, str(ROOT / "run.py"), "--config-path", str(ROOT / "examples/emu3/conf")),
            *("--config-name", "config_serve", f"experiment.exp_dir={self.exp_dir}"),
            *(f"serve.model={self.model}", f"serve.port={self.url.rpartition(':')[2]}"),
            *(
                "+serve.dtype=float32",
                "+serve.max_model_len=512",
                "+serve.enforce_eager=true",
                f"+serve.api_key={KEY}",
                "+experiment.envs.VLLM_CPU_KVCACHE_SPACE=1",
            ),
        ]
        return subprocess.run(
            [*words, f"action={action}"],
            cwd=self.exp_dir.parent,
            env={**os.environ, **ENVIRONMENT},
            capture_output=True,
            text=True,
        )

    def post(self, route: str, body: Any, **headers: str) -> tuple[int, Any]:
        import httpx

        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", **headers}
        answer = httpx.post(f"{self.url}/v1/{route}", content=content, headers=sent, timeout=300)
        return answer.status_code, answer.json()

    def draw(self, **fields: Any) -> list[bytes]:
        """Return the PNG files of one request."""
        status, body = self.post("images/generations", {"prompt": PROMPT, **fields})
        assert status == 200, body
        return [base64.b64decode(one["b64_json"]) for one in body["data"]]

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "tools/ask.py"), *words, "--url", f"{self.url}/v1"]
        env = {**os.environ, "VLLM_API_KEY": KEY}
        return subprocess.run(command, env=env, capture_output=True, text=True)

    def load(self) -> health.Load:
        """Return the server's load, with the pictures that are being decoded, which it has to report."""
        import httpx

        text = httpx.get(f"{self.url}/metrics", timeout=60).text
        assert "\nflagscale:pictures_decoding " in text
        found = health.parse_load(text, 0.0)
        assert found
        return found

    def requests(self) -> float:
        """Return how many requests the engine has, running or waiting."""
        import httpx

        marks = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
        lines = httpx.get(f"{self.url}/metrics", timeout=60).text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(marks))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("emu3")
    make_emu3(folder / "model")
    (folder / "model/chat_template.jinja").write_text(TEMPLATE)
    made = Server(folder / "model", f"http://127.0.0.1:{free_port()}", folder / "run")
    try:
        started = made.run("run")
        assert started.returncode == 0, started.stdout + started.stderr
        yield made
    finally:
        if plan := RunDir(made.exp_dir).read_plan():
            processes.end(lambda: processes.of_run(plan.run_id), grace=0)


@pytest.fixture(scope="module")
def reference(server: Server) -> Any:
    from flagscale_testing.emu3_reference import Reference

    return Reference(server.model)


def pixels(png: bytes) -> Any:
    import numpy as np
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(png))).astype(int)


def test_greedy_pictures_are_those_of_transformers(server: Server, reference: Any, tmp_path: Path) -> None:
    import openai

    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)
    fields = {"temperature": 0, "guidance_scale": 3.0, "negative_prompt": NEGATIVE, "prompt_suffix": ""}
    for ratio in ("1:1", "3:4"):
        expected = reference.draw(PROMPT, ratio, scale=3.0, negative=NEGATIVE)
        answer = client.images.generate(prompt=PROMPT, model="emu3", size=ratio, extra_body=fields)  # type: ignore[call-overload]
        (picture,) = answer.data
        found = pixels(base64.b64decode(picture.b64_json))
        assert found.shape == expected.picture.shape
        assert abs(found - expected.picture).max() <= 1
        assert answer.size == f"{found.shape[1]}x{found.shape[0]}"
        counts = (answer.usage.input_tokens, answer.usage.output_tokens)
        assert counts == (len(expected.prompt), len(expected.tokens))

    file = tmp_path / "drawn.png"
    done = server.ask(PROMPT, "--draw", str(file), "--size", "32x16", "--seed", "3")
    assert (done.returncode, done.stdout) == (0, f"{file}: 32x16, seed 3\n"), done.stderr
    assert server.draw(size="32x16", seed=3) == [file.read_bytes()]


def test_pictures_of_a_seed_are_the_same_alone_and_in_company(server: Server) -> None:
    fields: dict[str, Any] = {"size": "32x24", "guidance_scale": 2.0, "negative_prompt": NEGATIVE}
    text = {"model": "emu3", "prompt": "a cat", "max_tokens": 40, "temperature": 0, "ignore_eos": True}
    calm = server.post("completions", text)[1]["choices"]
    with ThreadPoolExecutor(6) as pool:
        drawn = [pool.submit(server.draw, **fields, n=3, seed=7) for _ in range(2)]
        written = [pool.submit(server.post, "completions", text) for _ in range(4)]
    first, again = (one.result() for one in drawn)
    assert first == again
    assert len({*first}) == 3
    assert server.draw(**fields, seed=8) == first[1:2]
    assert [one.result()[1]["choices"] for one in written] == [calm] * 4
    assert server.draw(**{**fields, "guidance_scale": 1}, seed=7) != first[:1]
    assert server.draw(**{**fields, "guidance_scale": 0}, seed=7) != first[:1]


@pytest.mark.parametrize(
    ("body", "status", "reported"),
    [
        ({"size": "63x48"}, 400, "size `63x48`: both sides must be multiples of 8 pixels, such as `64x48`"),
        ({"size": "1000:1"}, 400, "ratio `1000:1` leaves less than 8 pixels"),
        ({"size": "512x512"}, 400, "does not fit the model's 512 positions; the largest of this ratio is"),
        ({"prompt": "a cat " * 400}, 400, "does not fit the model's 512 positions"),
        ({"prompt": f"a {names.END_OF_IMAGE}"}, 400, "the prompt contains the special token"),
        ({"n": 11}, 400, "`n` takes a whole number from 1 to 10, not 11"),
        ({"guidance_scale": -1, "negative_prompt": ""}, 400, "`negative_prompt` takes a text"),
        ({"response_format": "url"}, 400, "`response_format`: 'url' is not supported"),
        ({"cfg": 3}, 400, "unknown field `cfg`"),
        ({"model": "other"}, 404, "The model `other` does not exist"),
        (b"{", 400, "validation error"),
        (b"[1]", 400, "validation error"),
    ],
)
def test_mistakes_are_refused(server: Server, body: Any, status: int, reported: str) -> None:
    asked = body if isinstance(body, bytes) else {"prompt": PROMPT, **body}
    code, answer = server.post("images/generations", asked)
    assert (code, answer["error"]["code"]) == (status, status)
    assert reported in answer["error"]["message"]


def test_the_key_is_required(server: Server) -> None:
    code, _ = server.post("images/generations", {"prompt": PROMPT}, Authorization="Bearer other")
    assert code == 401


@pytest.mark.parametrize("clients", [200])
def test_nothing_runs_on_for_clients_that_have_gone(server: Server, clients: int) -> None:
    before = server.draw(size="32x24", seed=1)
    asyncio.run(leave(server.url, clients))
    wait_until(lambda: server.requests() == 0, 60)
    assert server.draw(size="32x24", seed=1) == before
    wait_until(lambda: server.load().running == 0, 60)


async def leave(url: str, clients: int) -> None:
    """Ask for pictures, and close each connection after a random time: while it waits, draws or decodes."""
    import httpx

    chance = random.Random(0)

    async def one(client: httpx.AsyncClient) -> None:
        body = {"prompt": PROMPT, "size": "64x64", "n": chance.randint(1, 3), "seed": chance.randrange(9)}
        try:
            await client.post(
                f"{url}/v1/images/generations",
                json=body,
                headers={"Authorization": f"Bearer {KEY}"},
                timeout=chance.uniform(0.01, 2),
            )
        except httpx.TimeoutException:
            pass

    async with httpx.AsyncClient(limits=httpx.Limits(max_connections=10)) as client:
        for _ in range(0, clients, 10):
            await asyncio.gather(*(one(client) for _ in range(10)))


def test_answers_about_pictures_are_those_of_transformers(
    server: Server, reference: Any, tmp_path: Path
) -> None:
    import numpy as np
    from PIL import Image

    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype="uint8"))
    file = tmp_path / "a.png"
    picture.save(file)
    url = f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
    question = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What is this?"}]
    body = {"model": "emu3", "messages": [{"role": "user", "content": question}]}
    status, answer = server.post(
        "chat/completions", {**body, "temperature": 0, "max_tokens": 24, "return_token_ids": True}
    )
    assert status == 200, answer
    text = "USER: <image>What is this? ASSISTANT:"
    expected = reference.answer(text, [picture], 24)
    assert answer["choices"][0]["token_ids"] == expected
    done = server.ask("What is this?", "--image", str(file), "--max-tokens", "24")
    assert (done.returncode, done.stdout) == (0, f"{answer['choices'][0]['message']['content']}\n")


def test_pictures_of_a_seed_are_the_same_in_a_batch(server: Server) -> None:
    program = (
        "import sys, base64; from vllm import LLM; from flagscale.checks.emu3 import grid_of\n"
        "from vllm_flagscale.emu3.prompts import picture_request\n"
        "from vllm_flagscale.emu3 import wiring as emu3; from vllm_flagscale.guidance import wiring\n"
        "engine = LLM(sys.argv[1], dtype='float32', max_model_len=512, enforce_eager=True,\n"
        "    scheduler_cls=wiring.SCHEDULER, worker_extension_cls=emu3.WORKER_EXTENSION,\n"
        "    logits_processors=[emu3.GRID_PROCESSOR, wiring.PROCESSOR])\n"
        "wanted = picture_request(engine.get_tokenizer(), sys.argv[2], grid_of('32x24'), 512, scale=2.0)\n"
        "prompt = {'prompt_token_ids': list(wanted.prompt)}\n"
        "for one in engine.generate([prompt], wanted.sampling(n=2, seed=7))[0].outputs:\n"
        "    png = engine.collective_rpc('decode_picture', args=(list(one.token_ids), [3, 4]))[0]\n"
        "    print('PNG', base64.b64encode(png).decode())\n"
    )
    settings = {**ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, str(server.model), PROMPT],
        env={**os.environ, **settings, "PYTHONPATH": import_path(str(ROOT))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("PNG ")]
    served = server.draw(size="32x24", guidance_scale=2.0, n=2, seed=7)
    assert [base64.b64decode(one) for one in found] == served


def test_a_stopped_server_finishes_the_pictures_that_it_has_begun(server: Server) -> None:
    """The last test: the server is gone afterwards."""
    with ThreadPoolExecutor(2) as pool:
        drawn = pool.submit(server.draw, size="96x80", n=2, seed=1)
        wait_until(lambda: server.requests() > 0, 60)
        stopped = pool.submit(server.run, "stop")
        assert len(drawn.result()) == 2
        assert stopped.result().returncode == 0
