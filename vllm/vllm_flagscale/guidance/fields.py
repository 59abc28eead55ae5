"""What a guided request over HTTP becomes: the server tokenizes its negative prompt as it does the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from math import ceil
from typing import Any

from flagscale.checks.guidance import (
    NEGATIVE,
    NOT_WITH_MEDIA,
    SCALE,
    Guidance,
    chat_violations,
    guidance_of,
    negative_chat,
    penalty_violations,
)
from vllm_flagscale.guidance.request import NEGATIVE as NEGATIVE_IDS
from vllm_flagscale.guidance.request import extra_args, id_violations

_NOT_WITH = {"use_beam_search": "beam search", "prompt_embeds": "a prompt of embeddings"}
"""Field of a request -> what it asks for, that cannot be combined with guidance."""


class Refused(Exception):
    """A request that is answered with an error; `param` is the field that is blamed."""

    def __init__(
        self, message: str, param: str, status: int = HTTPStatus.BAD_REQUEST, kind: str = "BadRequestError"
    ) -> None:
        super().__init__(message)
        self.status = int(status)
        self.answer = {"error": {"message": message, "type": kind, "param": param, "code": int(status)}}
        """The error in OpenAI's form."""


XARGS, PARAMS = "vllm_xargs", "sampling_params"


def in_engine(request: Mapping[str, Any]) -> str:
    """Return the field of a request that holds the engine's own fields of guidance; "" if none does.

    It is XARGS, or PARAMS in requests of tokens (`/inference/v1/generate`).
    """
    params = request.get(PARAMS)
    places = {
        XARGS: request.get(XARGS),
        PARAMS: params.get("extra_args") if isinstance(params, dict) else None,
    }
    return next((name for name, given in places.items() if isinstance(given, dict) and _asks(given)), "")


def _asks(given: Mapping[str, Any]) -> bool:
    return any(given.get(key) is not None for key in (SCALE, NEGATIVE_IDS))


async def with_engine_fields(
    state: Any, *, is_chat: bool, request: dict[str, Any], own: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a request whose guidance (`own`, valid; empty if it has the engine's fields) is in XARGS.

    `state` is that of the server's app.

    Raises:
        Refused: if it cannot be guided.
    """
    given = request.get(XARGS) or {}
    if not isinstance(given, dict) or (not own and given.get(SCALE) == 1):
        return request  # vLLM refuses it, or it is an ordinary request
    for field, what in _NOT_WITH.items():
        if request.get(field):
            raise Refused(f"{what} (`{field}`) cannot be combined with `{SCALE}`", field)
    defaults = state.openai_serving_completion.default_sampling_params
    remedy = "set `generation_config: vllm` for the server"
    for name, what in penalty_violations(request, defaults, remedy):
        raise Refused(what, name)
    guidance = guidance_of(own)
    if guidance is None:
        if _has_media(request):
            raise Refused(NOT_WITH_MEDIA, "messages")
        ids = given.get(NEGATIVE_IDS)
        _check(state, ids, NEGATIVE_IDS, XARGS)
        if isinstance(ids, list) and (what := await _without_room(state, is_chat, request, len(ids))):
            raise Refused(what, XARGS)
        return request
    ids = await _negative_ids(state, is_chat, request, guidance)
    _check(state, ids, NEGATIVE, NEGATIVE)
    if ids and (what := await _without_room(state, is_chat, request, len(ids))):
        raise Refused(what, NEGATIVE)
    # Without ids, vLLM cannot read the request. Should it do so after all, the processor refuses it.
    fields = extra_args(guidance.scale, ids) if ids else {SCALE: guidance.scale}
    return {**request, XARGS: {**given, **fields}}


async def _negative_ids(
    state: Any, is_chat: bool, request: dict[str, Any], guidance: Guidance
) -> list[int] | None:
    """Return the ids of the negative prompt; None if vLLM cannot read the request."""
    negative = guidance.negative
    messages = request.get("messages")
    if is_chat:
        if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
            return None
        for field, what in chat_violations(messages, guidance, _has_media(request)):
            raise Refused(what, field)
    if not isinstance(negative, str):
        return list(negative)
    changed = {"messages": negative_chat(messages or [], negative)} if is_chat else {"prompt": negative}
    try:
        rendered = await _rendered(state, request | changed, is_chat)
    except Refused:
        # If the mistake is in another field, vLLM refuses the request itself, without blame for this one.
        if await _is_refused(state, request, is_chat):
            return None
        raise
    return rendered[0] if rendered else None


async def _is_refused(state: Any, request: dict[str, Any], is_chat: bool) -> bool:
    try:
        return not await _rendered(state, request, is_chat)
    except Refused:
        return True


def _has_media(request: Mapping[str, Any]) -> bool:
    """Return whether a chat, or the `input` of `/v1/responses`, has pictures or the like."""
    from vllm.renderers.chat_utils import has_non_text_content

    return any(has_non_text_content(request.get(field)) for field in ("messages", "input"))


async def _without_room(state: Any, is_chat: bool, request: dict[str, Any], negative: int) -> str:
    """Return why a request and a negative prompt of this length do not fit into the KV cache; "" if they do.

    The prompt is tokenized a second time only if the cache is too small for two of the longest sequences.
    """
    cache, model = state.vllm_config.cache_config, state.vllm_config.model_config
    size = cache.block_size
    # Of all data parallel ranks; one block of each is a placeholder that no request gets.
    blocks = cache.num_gpu_blocks // state.vllm_config.parallel_config.data_parallel_size - 1
    if 2 * ceil(model.max_model_len / size) <= blocks:
        return ""
    try:
        prompt = max(map(len, await _rendered(state, request, is_chat)), default=0)
    except Refused:
        return ""  # vLLM refuses the prompt
    if ceil(prompt / size) + ceil(negative / size) <= blocks:
        return ""
    return (
        f"a prompt of {prompt} and a `{NEGATIVE}` of {negative} tokens do not fit into the KV cache together "
        f"({blocks} blocks of {size} tokens): shorten them, or give the server's cache more memory"
    )


def _check(state: Any, ids: Any, name: str, field: str) -> None:
    """Raise Refused if the engine has no such ids, or too few places; what is no list of ids, it refuses."""
    if not isinstance(ids, list) or not ids or not all(type(one) is int for one in ids):
        return
    model = state.vllm_config.model_config
    if wrong := [*id_violations(name, ids, model.get_vocab_size(), model.max_model_len)]:
        raise Refused("; ".join(wrong), field)


async def _rendered(state: Any, request: dict[str, Any], is_chat: bool) -> list[list[int]]:
    """Return the ids of each prompt of a request; none if the request is not valid.

    By the way of vLLM's own requests (`renderers/online_renderer.py` of 0.32), so that templates, tools and
    special tokens are the same.

    Raises:
        Refused: if it cannot be tokenized, or is too long; it blames the negative prompt.
    """
    from copy import deepcopy

    from jinja2 import TemplateError
    from pydantic import ValidationError
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.serve import create_error_response
    from vllm.entrypoints.serve.engine.protocol import ErrorResponse
    from vllm.exceptions import VLLMError

    form = ChatCompletionRequest if is_chat else CompletionRequest
    try:
        parsed = form.model_validate(deepcopy(request))  # vLLM's validators write into what they are given
    except ValidationError:
        return []
    try:
        renderer = state.online_renderer
        answer = await (renderer.render_chat(parsed) if is_chat else renderer.render_completion(parsed))
    except (VLLMError, ValueError, TypeError, TemplateError) as error:  # TypeError: half of a surrogate pair
        answer = create_error_response(error)
    if isinstance(answer, ErrorResponse):
        what = f"`{NEGATIVE}`: {answer.error.message}"
        raise Refused(what, NEGATIVE, answer.error.code, answer.error.type)
    inputs = answer[1] if is_chat else answer
    return [list(one["prompt_token_ids"]) for one in inputs]
