"""`tools/ask.py`: it prints the answer as it arrives, and reports a refusal or a missing server."""

from __future__ import annotations

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
    """A server with one model, which requires an API key."""

    def do_GET(self) -> None:
        self._send({"object": "list", "data": [{"id": "aquila", "object": "model"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Authorization"] != "Bearer key":
            self._send({"error": {"message": "Unauthorized"}}, 401)
            return
        pieces = [f" {asked['model']}", f" {asked['max_tokens']}"]
        lines = [f"data: {json.dumps({'choices': [{'index': 0, 'text': piece}]})}\n\n" for piece in pieces]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        self.wfile.write("".join([*lines, "data: [DONE]\n\n"]).encode())

    def _send(self, body: object, code: int = 200) -> None:
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

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


def test_a_wrong_key_and_a_missing_server_are_reported(url: str) -> None:
    refused = ask("hello", "--url", url, VLLM_API_KEY="wrong")
    assert refused.returncode == 2
    assert "the server refused the request" in refused.stderr
    assert "Traceback" not in refused.stderr
    absent = ask("hello", "--url", "http://127.0.0.1:1/v1")
    assert absent.returncode == 2
    assert "no server answers at http://127.0.0.1:1/v1" in absent.stderr
