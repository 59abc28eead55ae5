"""Measure the cost of serving by FlagScale: one server is started by `run.py`, the same one directly.

Both servers run at the same time and receive the same requests in turn, so that other load on the machine
affects both equally. On CPU only:
python -m benchmarks.serve_overhead [--model FOLDER] [--rounds N]
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from flagscale_testing.ports import free_port

ROOT = Path(__file__).resolve().parents[1]
FLAGS = {"dtype": "float32", "max-model-len": "256", "served-model-name": "model"}
REQUESTS, TOGETHER, TOKENS = 24, 4, 48
PROMPT = "The standard library of this language is documented in "


@dataclass(frozen=True)
class Round:
    """One round of requests: generated tokens per second, and the mean time to the first token."""

    tokens_per_s: float
    first_token_ms: float


async def load(url: str) -> Round:
    """Send the requests, a few at a time, and stream the answers."""
    import openai

    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none")
    places = asyncio.Semaphore(TOGETHER)
    firsts: list[float] = []

    async def ask(number: int) -> None:
        async with places:
            begun = time.monotonic()
            stream = await client.completions.create(
                model="model",
                prompt=f"{number} {PROMPT}",
                max_tokens=TOKENS,
                temperature=0,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            seen = False
            async for _ in stream:
                if not seen:
                    firsts.append(time.monotonic() - begun)
                    seen = True

    begun = time.monotonic()
    await asyncio.gather(*(ask(number) for number in range(REQUESTS)))
    return Round(REQUESTS * TOKENS / (time.monotonic() - begun), 1000 * statistics.mean(firsts))


def wait_until_healthy(url: str) -> None:
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    raise SystemExit(f"{url} does not answer")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="outputs/aquila_demo/hf")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    ports = {"FlagScale": free_port(), "plain vLLM": free_port()}
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    with tempfile.TemporaryDirectory() as folder:
        ours = [
            *(sys.executable, str(ROOT / "run.py"), "--config-path", str(ROOT / "examples/aquila/conf")),
            *("--config-name", "config_serve", f"experiment.exp_dir={folder}"),
            *(f"serve.model={Path(arguments.model).absolute()}", f"serve.port={ports['FlagScale']}"),
            "serve.served_model_name=model",
        ]
        subprocess.run([*ours, "action=run"], check=True)
        try:
            measure(plain(arguments.model, ports["plain vLLM"]), urls, arguments.rounds)
        finally:
            subprocess.run([*ours, "action=stop"], check=True)


def plain(model: str, port: int) -> list[str]:
    """Return the command of vLLM's own server, with the environment that the example sets."""
    flags = [word for name, value in FLAGS.items() for word in (f"--{name}", value)]
    environment = ("CUDA_VISIBLE_DEVICES=", "OMP_NUM_THREADS=1", "VLLM_CPU_KVCACHE_SPACE=1")
    server = (sys.executable, "-W", "ignore", "-m", "vllm.entrypoints.openai.api_server")
    where = ("--host", "127.0.0.1", "--port", str(port))
    return ["env", *environment, *server, "--model", model, "--enforce-eager", *flags, *where]


def measure(command: list[str], urls: dict[str, str], rounds: int) -> None:
    """Start the plain server, load both in turn, and print the table."""
    # In a separate session like ours: the kernel divides CPU time among sessions, and a server in the
    # session of its clients would get more of it than one started elsewhere.
    server = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        for url in urls.values():
            wait_until_healthy(url)
            asyncio.run(load(url))  # warm up: only the first requests wait for this
        found: dict[str, list[Round]] = {name: [] for name in urls}
        for number in range(rounds):
            # The order matters, so it alternates.
            for name in sorted(urls, reverse=bool(number % 2)):
                found[name].append(asyncio.run(load(urls[name])))
    finally:
        server.terminate()
        server.wait()
    print("\n| | FlagScale | plain vLLM | ratio |\n|---|---|---|---|")
    for what, field in (("tokens per second", "tokens_per_s"), ("ms to the first token", "first_token_ms")):
        ours, theirs = ([getattr(one, field) for one in found[name]] for name in urls)
        ratio = statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))
        print(f"| {what} | {statistics.median(ours):.1f} | {statistics.median(theirs):.1f} | {ratio:.3f} |")
    print(f"\nmedians of {rounds} rounds of {REQUESTS} requests, {TOGETHER} at a time, {TOKENS} tokens each")


if __name__ == "__main__":
    main()
