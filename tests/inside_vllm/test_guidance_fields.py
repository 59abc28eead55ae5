"""Guidance by the engine's own fields (`vllm_xargs`): requests without room, and pictures."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_flagscale.guidance.fields import Refused, with_engine_fields


class Small:
    """The state of a server whose KV cache has room for 3 blocks of 16 tokens; the prompt has 20 tokens."""

    vllm_config = SimpleNamespace(
        cache_config=SimpleNamespace(block_size=16, num_gpu_blocks=4),
        model_config=SimpleNamespace(max_model_len=64, get_vocab_size=lambda: 600),
        parallel_config=SimpleNamespace(data_parallel_size=1),
    )
    openai_serving_completion = SimpleNamespace(default_sampling_params={})

    class online_renderer:
        @staticmethod
        async def render_completion(request: Any) -> Any:
            return [{"prompt_token_ids": [1] * 20}]


@pytest.mark.parametrize("length", [16, 17])
def test_the_engines_own_fields_without_room_are_refused(length: int) -> None:
    inner = {"guidance_scale": 3, "negative_prompt_token_ids": [1] * length}
    request = {"prompt": "x", "vllm_xargs": inner}
    asked = with_engine_fields(Small(), is_chat=False, request=request, own={})
    if length == 16:
        assert asyncio.run(asked) == request
        return
    with pytest.raises(Refused, match=r"of 17 tokens do not fit into the KV cache") as why:
        asyncio.run(asked)
    assert why.value.answer["error"]["param"] == "vllm_xargs"


def test_the_engines_own_fields_are_refused_beside_pictures_on_every_route() -> None:
    inner = {"guidance_scale": 3, "negative_prompt_token_ids": [1]}
    picture = {"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}
    for place in ("messages", "input"):
        request = {place: [picture], "vllm_xargs": inner}
        with pytest.raises(Refused, match="not supported in chats with pictures"):
            asyncio.run(with_engine_fields(Small(), is_chat=False, request=request, own={}))
