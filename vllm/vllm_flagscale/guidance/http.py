"""Guidance over HTTP: the fields of a request become what the engine reads, or the request is refused.

vLLM 0.32 ignores fields that it does not know, so a server without guidance refuses these by name.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from flagscale.checks.guidance import KEYS, NEGATIVE, SCALE, guidance_violations
from vllm_flagscale.guidance.fields import PARAMS, Refused, in_engine, with_engine_fields

MIDDLEWARE = f"{__name__}.GuidanceFields"
"""A value of the server's argument `middleware`."""
GUIDED = ("/v1/completions", "/v1/chat/completions")
WITH_OWN_FIELDS = ("/v1/images/generations",)
"""Routes that read these fields themselves."""
_HIDES = re.compile(rb"\\u00[4-7]")
"""An escaped letter or underscore of ASCII, which no program needs to write."""
_MARKS = tuple(f'"{key}'.encode() for key in KEYS)

Receive = Callable[[], Awaitable[Mapping[str, Any]]]


class GuidanceFields:
    """A middleware that reads JSON requests before vLLM does; those without the fields pass unchanged."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Receive, send: Any) -> None:
        if not _is_json_post(scope) or _route(scope) in WITH_OWN_FIELDS:
            await self._app(scope, receive, send)
            return
        # vLLM adds the check of keys before the user's middleware, so it comes after this one.
        await _after_authentication(self._read, scope)(scope, receive, send)

    async def _read(self, scope: Any, receive: Receive, send: Any) -> None:
        body = await _body_of(receive)
        if body is None:
            return  # the client has gone
        request = _asking(body)
        if request is not None:
            try:
                request = await _translated(scope["app"].state, _route(scope), request)
            except Refused as refused:
                await _answer(send, refused)
                return
            body = json.dumps(request).encode()
            scope = {**scope, "headers": [*_with_length(scope["headers"], len(body))]}
        await self._app(scope, _replayed(body, receive), send)


async def _translated(state: Any, route: str, request: dict[str, Any]) -> dict[str, Any]:
    """Return the request as the engine reads it.

    Raises:
        Refused: if it cannot be answered as it asks.
    """
    own = {key: request[key] for key in KEYS if request.get(key) is not None}
    inner = in_engine(request)
    first = next(iter(own), inner)
    if not state.args.guidance:
        what = "this server answers no requests with guidance: set `guidance: true` in its `serve` group"
        raise Refused(f"`{first}`: {what}", first)
    if own and route not in GUIDED:
        raise Refused(f"`{first}` is not supported by {route}; use {' or '.join(GUIDED)}", first)
    if own and inner:
        raise Refused(f"give `{SCALE}` and `{NEGATIVE}`, or their like in `{inner}`, not both", inner)
    if inner == PARAMS:
        return request  # the engine's processor checks it
    if wrong := [*guidance_violations(own)]:
        raise Refused("; ".join(what for _, what in wrong), wrong[0][0])
    rest = {key: value for key, value in request.items() if key not in KEYS}
    if own and own[SCALE] == 1:
        return rest  # an ordinary request
    return await with_engine_fields(state, is_chat=route == GUIDED[1], request=rest, own=own)


def _asking(body: bytes) -> dict[str, Any] | None:
    """Return the request if it asks for guidance; None also if vLLM will refuse to read it."""
    if not _may_ask(body):
        return None
    try:
        request = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(request, dict):
        return None
    asks = any(request.get(key) is not None for key in KEYS) or bool(in_engine(request))
    return request if asks else None


def _may_ask(body: bytes) -> bool:
    """Return False if the body, as the server reads it, has none of the keys; much faster than reading it."""
    # Servers read UTF-16 and UTF-32 as well, in which every character of a key has a byte that is zero.
    return any(mark in body for mark in _MARKS) or b"\0" in body[:4] or bool(_HIDES.search(body))


def _is_json_post(scope: Any) -> bool:
    if scope["type"] != "http" or scope["method"] != "POST":
        return False
    kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    return bool(kind.split(b";")[0].strip().lower() == b"application/json")


def _route(scope: Any) -> str:
    return str(scope["path"].removeprefix(scope.get("root_path", "")))


def _after_authentication(app: Any, scope: Any) -> Any:
    """Return `app` behind vLLM's own check of keys, if the server has keys."""
    keys = [key for key in (scope["app"].state.args.api_key or [os.environ.get("VLLM_API_KEY")]) if key]
    if not keys:
        return app
    from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware

    return AuthenticationMiddleware(app, tokens=keys)


async def _answer(send: Any, refused: Refused) -> None:
    body = json.dumps(refused.answer).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _body_of(receive: Receive) -> bytes | None:
    """Return the whole body; None if the client ends the connection before that."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return what gives `body` first, and then what comes from the client: that it has gone."""
    waiting: list[Mapping[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Mapping[str, Any]:
        return waiting.pop() if waiting else await receive()

    return replayed


def _with_length(headers: Any, length: int) -> Any:
    for name, value in headers:
        yield name, str(length).encode() if name == b"content-length" else value
