"""Pictures decoded beside the engine's steps: a worker that has a thread for it, and the server that waits.

`collective_rpc` runs between two steps of the engine, so a method that decodes keeps every other request
waiting meanwhile. These methods return at once: `begin_picture` hands the tokens to the thread, and
`take_picture` asks for the result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from typing import Any
from uuid import uuid4

from vllm_flagscale.emu3.decoder import PictureDecoder
from vllm_flagscale.emu3.thread_safe import use_torch

_FIRST_PAUSE = 0.005
_LONGEST_PAUSE = 0.1
_dropping: set[asyncio.Task[Any]] = set()


class Thread:
    """One thread that decodes pictures in the order in which they are begun."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "pictures")
        self._begun: dict[str, Future[bytes | None]] = {}

    def begin(self, name: str, decode: Callable[[], bytes | None]) -> None:
        self._begun[name] = self._thread.submit(decode)

    def take(self, name: str) -> list[Any] | None:
        """Return `["png", bytes]` or `["error", text]`, once; None before that, or if there is no picture."""
        future = self._begun.get(name)
        if future is None or not future.done():
            return None
        del self._begun[name]
        if error := future.exception():
            return ["error", f"{type(error).__name__}: {error}"]
        png = future.result()
        return None if png is None else ["png", png]

    def drop(self, name: str) -> None:
        """Forget a picture that nobody waits for; one that is not begun yet is not decoded."""
        if future := self._begun.pop(name, None):
            future.cancel()


class BackgroundDecoder(PictureDecoder):
    """The worker's part. vLLM adds these methods to the worker's class, whose `__init__` stays its own."""

    vllm_config: Any
    device: Any

    @cached_property
    def _picture_thread(self) -> Thread:
        from vllm.platforms import current_platform

        if current_platform.is_cpu():
            use_torch(self.model_runner.get_model().model.vqmodel)
        return Thread()

    def begin_picture(self, name: str, tokens: list[int], grid: list[int], engine: int) -> None:
        """Begin to decode a picture; of several data parallel engines, in this one only."""
        if self.vllm_config.parallel_config.data_parallel_index == engine:
            self._picture_thread.begin(name, lambda: self._decode_beside(tokens, grid))

    def take_picture(self, name: str) -> list[Any] | None:
        """See `Thread.take`; ranks without the decoder have no picture."""
        return self._picture_thread.take(name)

    def drop_picture(self, name: str) -> None:
        """See `Thread.drop`."""
        self._picture_thread.drop(name)

    def _decode_beside(self, tokens: list[int], grid: list[int]) -> bytes | None:
        import torch

        # On the stream of the steps, a device would decode between two of them again.
        with torch.Stream(self.device):
            return self.decode_picture(tokens, grid)


async def decoded(engine: Any, tokens: Sequence[int], grid: Sequence[int]) -> bytes:
    """Return the PNG file of a picture's tokens, decoded by the workers of an engine client (`AsyncLLM`).

    Raises:
        GenerationError: it cannot be decoded; the server answers with status 500, and the engine goes on.
    """
    from vllm.exceptions import GenerationError

    name = uuid4().hex
    index = engine.vllm_config.parallel_config.data_parallel_index  # of the engine whose results arrive here
    pause = _FIRST_PAUSE
    is_left = True
    try:
        await engine.collective_rpc("begin_picture", args=(name, list(tokens), list(grid), index))
        while True:
            answers = await engine.collective_rpc("take_picture", args=(name,))
            if found := [one for one in answers if one is not None]:
                break
            await asyncio.sleep(pause)
            pause = min(1.5 * pause, _LONGEST_PAUSE)
        is_left = len(answers) > 1  # the other ranks may still decode
    finally:  # the client may have gone, also while the worker was asked to begin
        if is_left:
            task = asyncio.ensure_future(_drop(engine, name))
            _dropping.add(task)  # asyncio itself keeps no reference to a task
            task.add_done_callback(_dropping.discard)
    kind, result = found[0]
    if kind == "error":
        raise GenerationError(f"the picture cannot be decoded: {result}")
    return bytes(result)


async def _drop(engine: Any, name: str) -> None:
    with suppress(Exception):  # the engine has failed, or the server is being stopped
        await engine.collective_rpc("drop_picture", args=(name,))
