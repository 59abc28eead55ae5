"""The middleware for requests with guidance, around an app that shows what reaches it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_flagscale.guidance.fields import Refused
from vllm_flagscale.guidance.http import GuidanceFields

GUIDED = {"guidance_scale": 3, "negative_prompt": "bad"}
INNER = {"guidance_scale": 3, "negative_prompt_token_ids": [1]}
LONG = b"x" * 300_000


@dataclass
class App:
    """An app that answers with status 200 and keeps what it gets."""

    guidance: bool = True
    scope: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, Any]] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope = scope
        self.messages.append(await receive())
        while self.messages[-1].get("more_body"):
            self.messages.append(await receive())
        self.messages.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    @property
    def body(self) -> bytes:
        return b"".join(one.get("body", b"") for one in self.messages)

    def post(
        self,
        *parts: bytes,
        path: str = "/v1/completions",
        kind: bytes = b"application/json",
        method: str = "POST",
    ) -> tuple[int, dict[str, Any]]:
        """Return the status and the answer to a request whose body comes in parts."""
        state = SimpleNamespace(
            args=SimpleNamespace(guidance=self.guidance, api_key=None),
            openai_serving_completion=SimpleNamespace(default_sampling_params={"repetition_penalty": 1.3}),
        )
        length = str(sum(map(len, parts))).encode()
        headers = [(b"content-type", kind), (b"content-length", length), (b"x-own", b"1")]
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "root_path": "",
            "headers": headers,
            "app": SimpleNamespace(state=state),
        }
        coming: list[dict[str, Any]] = [
            {"type": "http.request", "body": part, "more_body": number < len(parts)}
            for number, part in enumerate(parts, start=1)
        ]
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return coming.pop(0) if coming else {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        asyncio.run(GuidanceFields(self)(scope, receive, send))
        if not sent:
            return 0, {}
        return sent[0]["status"], json.loads(b"".join(one.get("body", b"") for one in sent))


@pytest.fixture(autouse=True)
def without_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


def encoded(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


UNCHANGED: list[tuple[bytes, dict[str, Any]]] = [
    (encoded(prompt="x"), {}),
    (encoded(prompt="x", guidance_scale=None), {}),
    (b'{"guidance_scale": 3, ', {}),
    (b'"guidance_scale"', {}),
    (b'{"guidance_scale": 3, "x": ' + b"[" * 100_000, {}),
    (encoded(prompt='say "guidance_scale"'), {}),
    (encoded(**GUIDED), {"kind": b"text/plain"}),
    (encoded(**GUIDED), {"path": "/v1/images/generations"}),
    (encoded(**GUIDED), {"method": "PUT"}),
]


@pytest.mark.parametrize("number", range(len(UNCHANGED)))
def test_other_requests_pass_unchanged(number: int) -> None:
    body, how = UNCHANGED[number]
    app = App(guidance=False)
    half = len(body) // 2
    assert app.post(body[:half], body[half:], **how) == (200, {})
    assert app.body == body
    # A client that goes while its request is answered is still noticed.
    assert app.messages[-1] == {"type": "http.disconnect"}


@pytest.mark.parametrize(
    "asked",
    [GUIDED, {"vllm_xargs": INNER}, {"negative_prompt": "x"}, {"sampling_params": {"extra_args": INNER}}],
)
def test_a_server_without_guidance_names_the_key(asked: dict[str, Any]) -> None:
    status, answer = (app := App(guidance=False)).post(encoded(prompt="x", **asked))
    assert status == 400
    assert "set `guidance: true`" in answer["error"]["message"]
    assert answer["error"]["param"] == next(iter(asked))
    assert app.messages == []


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "utf-8-sig"])
def test_the_fields_are_seen_in_every_encoding_that_the_server_reads(encoding: str) -> None:
    body = encoded(prompt="x", **GUIDED).decode().encode(encoding)
    status, answer = App(guidance=False).post(body)
    assert (status, answer["error"]["param"]) == (400, "guidance_scale")
    assert (app := App()).post(encoded(prompt="x").decode().encode(encoding)) == (200, {})
    assert app.body.decode(encoding) == '{"prompt": "x"}'


@pytest.mark.parametrize("character", ["_", "g", "E", "v"])
def test_the_fields_are_seen_if_a_character_is_escaped(character: str) -> None:
    escaped = f"\\u{ord(character):04x}"
    body = encoded(prompt="x", vllm_xargs=INNER, **GUIDED).decode().replace(character, escaped)
    assert App(guidance=False).post(body.encode())[0] == 400


@pytest.mark.parametrize(
    "path", ["/v1/responses", "/v1/messages", "/v1/chat/completions/batch", "/invocations"]
)
def test_other_routes_refuse_the_fields(path: str) -> None:
    status, answer = App().post(encoded(input="x", **GUIDED), path=path)
    assert (status, answer["error"]["param"]) == (400, "guidance_scale")
    assert f"not supported by {path}; use /v1/completions" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"vllm_xargs": INNER}, "vllm_xargs"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"prompt_embeds": "AA"}, "prompt_embeds"),
        ({"repetition_penalty": 1.5}, "repetition_penalty"),
        ({}, "repetition_penalty"),
    ],
)
def test_what_cannot_be_combined_is_refused_by_field(more: dict[str, Any], param: str) -> None:
    status, answer = App().post(encoded(prompt="x", **GUIDED, **more))
    assert (status, answer["error"]["param"], answer["error"]["code"]) == (400, param, 400)


def test_a_penalty_of_the_folder_is_named_with_the_remedy() -> None:
    _, answer = App().post(encoded(prompt="x", **GUIDED))
    message = answer["error"]["message"]
    assert "generation_config.json sets `repetition_penalty` 1.3" in message
    assert message.endswith("set it to 1, or set `generation_config: vllm` for the server")


def test_requests_of_tokens_are_left_to_the_engine() -> None:
    body = encoded(token_ids=[1], sampling_params={"extra_args": INNER, "repetition_penalty": 1})
    assert (app := App()).post(body, path="/inference/v1/generate")[0] == 200
    assert json.loads(app.body) == json.loads(body)


def test_scale_1_of_the_engine_is_an_ordinary_request() -> None:
    inner = {**INNER, "guidance_scale": 1}
    assert (app := App()).post(encoded(prompt="x", vllm_xargs=inner, use_beam_search=True))[0] == 200
    assert json.loads(app.body)["vllm_xargs"] == inner
    assert App().post(encoded(prompt="x", vllm_xargs=INNER, use_beam_search=True))[0] == 400


def test_scale_1_becomes_an_ordinary_request_of_the_right_length() -> None:
    app = App()
    # The penalty of the folder does not matter: this request has no twin.
    assert app.post(encoded(prompt="x", **{**GUIDED, "guidance_scale": 1}, user=LONG.decode()))[0] == 200
    assert json.loads(app.body) == {"prompt": "x", "user": LONG.decode()}
    headers = dict(app.scope["headers"])
    assert headers[b"content-length"] == str(len(app.body)).encode()
    assert headers[b"x-own"] == b"1"


def test_a_client_that_goes_while_it_sends_reaches_nobody() -> None:
    app = App()
    assert app.post() == (0, {})
    assert app.messages == []


@pytest.mark.parametrize(("wrong", "status"), [("suffix", 200), ("negative", 400)])
def test_only_mistakes_of_the_negative_prompt_are_blamed_on_it(
    wrong: str, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def rendered(state: Any, request: dict[str, Any], is_chat: bool) -> list[list[int]]:
        if wrong == "suffix" or request["prompt"] == "bad":
            raise Refused("wrong", "negative_prompt")
        return [[1]]

    monkeypatch.setattr("vllm_flagscale.guidance.fields._rendered", rendered)
    # The app stands for vLLM, which would refuse the first request by the field that is wrong.
    assert App().post(encoded(prompt="x", suffix="y", repetition_penalty=1, **GUIDED))[0] == status
