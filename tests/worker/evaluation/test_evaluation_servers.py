"""The harness against a server: with and without BOS, and servers that cannot be evaluated."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.worker.evaluation.conftest import records_of, scores_in

pytestmark = pytest.mark.slow


@pytest.fixture
def server(model: Path) -> Iterator[str]:
    """A server that returns the model's probabilities of given ids, as vLLM does; yield its address."""
    from flagscale_testing.evaluated import reference

    known = reference(model)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send({"data": [{"id": "tiny"}]} if self.path == "/v1/models" else None)

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            choices = []
            for index, ids in enumerate(asked["prompt"]):
                found: list[Any] = [None, *known.log_probabilities(ids), -1.0]  # the last one: the new token
                top = [None, *({"x": 0.0} for _ in found[1:])]
                choices.append({"index": index, "logprobs": {"token_logprobs": found, "top_logprobs": top}})
            self._send({"choices": choices})

        def _send(self, answer: Any) -> None:
            body = json.dumps(answer).encode()
            self.send_response(200 if answer else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=listening.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{listening.server_port}"
    listening.shutdown()
    listening.server_close()


@pytest.mark.parametrize("bos", [None, True])
def test_a_server_gets_no_bos_unless_it_is_asked_for(
    evaluate: Callable[..., int], server: str, model: Path, tmp_path: Path, bos: bool | None
) -> None:
    """`hf` begins texts as the tokenizer does, `local-completions` without BOS (lm_eval 0.4.13)."""
    from flagscale_testing.evaluated import accuracies, reference

    args = {"base_url": f"{server}/v1/completions", "model": "tiny"} | ({"add_bos_token": bos} if bos else {})
    words = ("--model", "local-completions", "--model_args", json.dumps(args), "--tokenizer", str(model))
    assert evaluate(*words, "--log_samples") == 0
    right = reference(model).choices(bos=bool(bos))
    for record, one in zip(records_of(tmp_path / "out", "local_choice"), right, strict=True):
        assert [float(pair[0]) for pair in record["filtered_resps"]] == pytest.approx(one, abs=1e-4)
    assert scores_in(tmp_path / "out")["tiny", "acc"] == accuracies(right)[0]


def test_a_server_that_does_not_answer_or_serves_another_model(
    evaluate: Callable[..., int], server: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def words(address: str, name: str) -> tuple[str, ...]:
        args = {"base_url": f"{address}/v1/completions", "model": name}
        return ("--model", "local-completions", "--model_args", json.dumps(args), "--tokenizer", str(model))

    assert evaluate(*words(server, "other")) == 2
    assert "does not serve `other` (model_args.model); served: tiny" in capsys.readouterr().out
    assert evaluate(*words("http://127.0.0.1:1", "tiny")) == 2
    assert "http://127.0.0.1:1/v1/models cannot be read: " in capsys.readouterr().out
