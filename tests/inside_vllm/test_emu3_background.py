"""Pictures are decoded in a thread of the worker: results, errors, clients that go, and other engines."""

from __future__ import annotations

import asyncio
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from vllm.exceptions import GenerationError

from vllm_flagscale.emu3.background import BackgroundDecoder, decoded

TOKENS, GRID = [1, 2, 3], [1, 2]


class Worker(BackgroundDecoder):
    """A worker whose decoder waits until it may go on."""

    def __init__(self, engine: int = 0, rank: int = 0) -> None:
        self.vllm_config = SimpleNamespace(parallel_config=SimpleNamespace(data_parallel_index=engine))
        self.device, self.rank = torch.device("cpu"), rank
        model = SimpleNamespace(vqmodel=nn.Identity())
        self.model_runner = SimpleNamespace(get_model=lambda: SimpleNamespace(model=model))
        self.may_go_on = threading.Event()
        self.decoded: list[Any] = []
        self.error: Exception | None = None

    def decode_picture(self, tokens: Any, sides: Any) -> bytes | None:
        self.may_go_on.wait(60)
        self.decoded.append((tokens, sides))
        if self.error:
            raise self.error
        return None if self.rank else b"PNG"


class Client:
    """An engine client with workers in this process; every call is remembered."""

    def __init__(self, *workers: Worker, engine: int = 0) -> None:
        self.vllm_config = SimpleNamespace(parallel_config=SimpleNamespace(data_parallel_index=engine))
        self.workers, self.calls = workers, list[str]()

    async def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[Any]:
        self.calls.append(method)
        return [getattr(one, method)(*args) for one in self.workers]


async def until_asked(client: Client, times: int) -> None:
    while client.calls.count("take_picture") < times:
        await asyncio.sleep(0.001)


def test_a_picture_is_waited_for_without_stopping_the_worker() -> None:
    worker, other_rank = Worker(), Worker(rank=1)
    client = Client(other_rank, worker)

    async def ask() -> bytes:
        asked = asyncio.create_task(decoded(client, TOKENS, GRID))
        await until_asked(client, 3)  # the worker has answered three calls while it decodes
        assert worker.decoded == []
        for one in client.workers:
            one.may_go_on.set()
        return await asked

    assert asyncio.run(ask()) == b"PNG"
    assert worker.decoded == other_rank.decoded == [(TOKENS, GRID)]


def test_an_error_is_that_of_the_request() -> None:
    worker = Worker()
    worker.error = ValueError("token 1 is not a code of a picture")
    worker.may_go_on.set()
    with pytest.raises(
        GenerationError, match="cannot be decoded: ValueError: token 1 is not a code"
    ) as error:
        asyncio.run(decoded(Client(worker), TOKENS, GRID))
    assert error.value.status_code == 500
    worker.error = None
    assert asyncio.run(decoded(Client(worker), TOKENS, GRID)) == b"PNG"


def test_nothing_is_kept_for_a_client_that_has_gone() -> None:
    worker = Worker()
    client = Client(worker)

    async def go() -> None:
        asked = [asyncio.create_task(decoded(client, TOKENS, GRID)) for _ in range(2)]
        await until_asked(client, 2)
        for one in asked:
            one.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        while client.calls.count("drop_picture") < 2:
            await asyncio.sleep(0.001)

    asyncio.run(go())
    worker.may_go_on.set()
    assert asyncio.run(decoded(client, TOKENS, GRID)) == b"PNG"
    # The first one had been begun; the second one waited, and was never decoded.
    assert worker.decoded == [(TOKENS, GRID)] * 2


class SlowClient(Client):
    """An engine client whose calls reach the workers whatever becomes of the one who waits for them."""

    async def collective_rpc(self, method: str, args: tuple[Any, ...]) -> list[Any]:
        call = super().collective_rpc(method, args)
        sent = asyncio.create_task(asyncio.wait_for(call, None))
        await asyncio.sleep(0.01)
        return await asyncio.shield(sent)


def kept(worker: Worker) -> int:
    return len(worker._picture_thread._begun)


def test_nothing_is_kept_for_a_client_that_goes_while_the_worker_is_asked_to_begin() -> None:
    worker = Worker()
    worker.may_go_on.set()
    client = SlowClient(worker)

    async def go() -> None:
        asked = asyncio.create_task(decoded(client, TOKENS, GRID))
        while "begin_picture" not in client.calls:
            await asyncio.sleep(0)
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        while "drop_picture" not in client.calls:
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(go(), 60))
    assert kept(worker) == 0


def test_nothing_is_kept_by_a_rank_that_is_slower_than_the_one_that_answers() -> None:
    first, second = Worker(), Worker(rank=1)
    first.may_go_on.set()
    client = Client(first, second)

    async def go() -> None:
        assert await decoded(client, TOKENS, GRID) == b"PNG"
        while "drop_picture" not in client.calls:
            await asyncio.sleep(0.001)

    asyncio.run(asyncio.wait_for(go(), 60))
    second.may_go_on.set()
    assert (kept(first), kept(second)) == (0, 0)


def test_of_several_engines_the_one_that_answers_decodes() -> None:
    first, second = Worker(engine=2), Worker(engine=3)
    for one in (first, second):
        one.may_go_on.set()
    # vLLM sends a call to all engines of the client, and returns what the first one answers.
    assert asyncio.run(decoded(Client(first, second, engine=2), TOKENS, GRID)) == b"PNG"
    assert (first.decoded, second.decoded) == ([(TOKENS, GRID)], [])
