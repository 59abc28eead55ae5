"""`tools/ask.py`: it prints the answer as it arrives, and reports a refusal or a missing server."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

pytest.importorskip("openai")

ROOT = Path(__file__).resolve().parents[2]


class Server(BaseHTTPRequestHandler):
    """A server with one model, which requires an API key. The prompt decides how its answer ends."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path != "/v1/models":
            self._send({"detail": "Not Found"}, 404)
            return
        self._send({"object": "list", "data": [{"id": "aquila", "object": "model"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Authorization"] != "Bearer key":
            self._send({"error": {"message": "Unauthorized"}}, 401)
            return
        if self.path == "/v1/images/generations":
            drawn = base64.b64encode(json.dumps(asked).encode()).decode()
            self._send({"created": 1, "size": "8x8", "data": [{"b64_json": drawn, "seed": 4}]})
            return
        pieces = [f" {asked['model']}", f" {asked['max_tokens']}"]
        if "guidance_scale" in asked:
            pieces = [f" {asked['guidance_scale']} {asked['negative_prompt']}"]
        if self.path == "/v1/chat/completions":
            pieces = [json.dumps(asked["messages"])]
        lines = [
            f"data: {json.dumps({'choices': [{'index': 0, 'text': piece, 'delta': {'content': piece}}]})}\n\n"
            for piece in pieces
        ]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        prompt = asked.get("prompt")
        if prompt == "broken":
            lines.append(f"data: {json.dumps({'error': {'message': 'EngineCore encountered an issue'}})}\n\n")
        lines += [] if prompt == "cut" else ["data: [DONE]\n\n"]
        for line in lines:
            self.wfile.write(f"{len(line):x}\r\n{line}\r\n".encode())
        if prompt != "cut":
            self.wfile.write(b"0\r\n\r\n")

    def _send(self, body: object, code: int = 200) -> None:
        text = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()


def ask(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "tools/ask.py", *words],
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_the_answer_follows_the_prompt(url: str) -> None:
    done = ask("hello", "--url", url, "--max-tokens", "7", VLLM_API_KEY="key")
    assert (done.returncode, done.stdout) == (0, "hello aquila 7\n"), done.stderr


@pytest.mark.slow
def test_guidance_is_passed_on_and_checked(url: str) -> None:
    guided = ("--guidance-scale", "2.5", "--negative-prompt", "worse")
    done = ask("hello", "--url", url, *guided, VLLM_API_KEY="key")
    assert (done.returncode, done.stdout) == (0, "hello 2.5 worse\n"), done.stderr
    half = ask("hello", "--url", url, "--guidance-scale", "-1")
    assert half.returncode == 2
    assert "--guidance-scale takes a number of at least 0, not -1.0" in half.stderr
    assert "--guidance-scale needs --negative-prompt" in half.stderr


def test_a_wrong_key_and_a_missing_server_are_reported(url: str) -> None:
    refused = ask("hello", "--url", url, VLLM_API_KEY="wrong")
    assert refused.returncode == 2
    assert "the server refused the request" in refused.stderr
    assert "it requires the key in the environment variable VLLM_API_KEY" in refused.stderr
    assert "Traceback" not in refused.stderr
    absent = ask("hello", "--url", "http://127.0.0.1:1/v1")
    assert absent.returncode == 2
    assert "no server answers at http://127.0.0.1:1/v1" in absent.stderr


@pytest.mark.parametrize(
    ("prompt", "reported"),
    [
        ("cut", "the answer is not complete: the server ended the connection"),
        ("broken", "the server ended the answer: EngineCore encountered an issue"),
    ],
)
def test_an_answer_that_is_not_complete_is_reported(url: str, prompt: str, reported: str) -> None:
    done = ask(prompt, "--url", url, VLLM_API_KEY="key")
    assert (done.returncode, done.stdout) == (2, f"{prompt} aquila 64\n")
    assert done.stderr.startswith(f"error: {reported}")


def test_a_wrong_url_gets_a_hint(url: str) -> None:
    base = url.removesuffix("/v1")
    for wrong in (base, f"{base}/v2"):
        assert f"the address of the API ends in /v1: --url {base}/v1" in ask("hello", "--url", wrong).stderr
    bare = ask("hello", "--url", url.removeprefix("http://"))
    assert (bare.returncode, "write it like http://127.0.0.1:8000/v1" in bare.stderr) == (2, True)


def test_pictures_are_sent_before_the_prompt(url: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"ABC")
    (tmp_path / "b.mp4").write_bytes(b"DEF")
    files = ("--image", str(tmp_path / "a.png"), "--video", str(tmp_path / "b.mp4"))
    done = ask("What?", *files, "--image", "https://example.org/c.png", "--url", url, VLLM_API_KEY="key")
    assert done.returncode == 0, done.stderr
    ((role, parts),) = (message.values() for message in json.loads(done.stdout))
    assert role == "user"
    assert [part.get("text") or part[part["type"]]["url"] for part in parts] == [
        "data:image/png;base64,QUJD",
        "https://example.org/c.png",
        "data:video/mp4;base64,REVG",
        "What?",
    ]


def test_every_missing_picture_is_reported(url: str) -> None:
    done = ask("What?", "--image", "absent.png", "--video", "absent.mp4", "--url", url, VLLM_API_KEY="key")
    assert done.returncode == 2
    assert [line.partition(" (")[0] for line in done.stderr.splitlines()] == [
        "error: the image absent.png: no such file",
        "error: the video absent.mp4: no such file",
    ]


def test_a_picture_is_drawn_into_a_file(url: str, tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    words = ("--size", "16:9", "--seed", "4", "--guidance-scale", "2", "--temperature", "0.5")
    done = ask("a cat", "--draw", str(file), *words, "--url", url, VLLM_API_KEY="key")
    assert (done.returncode, done.stdout) == (0, f"{file}: 8x8, seed 4\n"), done.stderr
    fields = {"size": "16:9", "seed": 4, "guidance_scale": 2.0, "temperature": 0.5}
    assert json.loads(file.read_bytes()) == {"prompt": "a cat", "model": "aquila", **fields}


@pytest.mark.slow
def test_what_a_picture_cannot_be_asked_with_is_reported(url: str, tmp_path: Path) -> None:
    words = ("--chat", "--max-tokens", "3", "--draw", str(tmp_path / "absent/a.png"))
    words += ("--guidance-scale", "nan", "--negative-prompt", "")
    done = ask("a cat", *words, "--url", url, VLLM_API_KEY="key")
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: --guidance-scale takes a number of at least 0, not nan",
        "error: --negative-prompt takes a text or a list of token ids that is not empty, not ''",
        "error: --chat cannot be combined with --draw",
        "error: --max-tokens cannot be combined with --draw",
        f"error: --draw {tmp_path}/absent/a.png: the folder {tmp_path}/absent does not exist",
    ]
    assert "--size needs --draw FILE" in ask("a cat", "--size", "1:1", "--url", url).stderr
    not_finite = ask("a cat", "--temperature", "inf", "--url", url)
    assert not_finite.returncode == 2
    assert "'inf' is not a finite number" in not_finite.stderr
