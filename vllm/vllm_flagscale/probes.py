"""Which values vLLM accepts where no class declares it: its own constructors and functions, tried out."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

_MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}
Accepts = Callable[[Any], bool]


def engine_probe(dest: str, folder: str) -> Accepts:
    """Return whether an engine's configuration accepts a value of one argument; `folder` holds a model."""
    from vllm.engine.arg_utils import EngineArgs

    start = _START.get(dest)

    def configure(value: Any) -> None:
        EngineArgs(model=folder, **{dest: value}).create_engine_config()
        if start:
            start(value)

    return _accepts(configure)


def server_probe(dest: str, parsed: argparse.Namespace) -> Accepts:
    """Return whether the server accepts a value of one of its own arguments, among `parsed` defaults."""
    from vllm.entrypoints.launchers.cli_args import validate_parsed_serve_args

    return _accepts(
        lambda value: validate_parsed_serve_args(argparse.Namespace(**{**vars(parsed), dest: value}))
    )


def sampling_probe(name: str) -> Accepts:
    """Return whether a request accepts a value of one field of SamplingParams."""
    from vllm import SamplingParams

    def construct(value: Any) -> None:
        # Without a limit of its own, `min_tokens` has no upper end.
        params = SamplingParams(**{"max_tokens": None, name: value})
        if name == "seed" and params.seed is not None:
            _draw(params.seed)

    return _accepts(construct)


def _accepts(construct: Callable[[Any], object]) -> Accepts:
    def accepts(value: Any) -> bool:
        try:
            construct(value)
        except Exception:  # vLLM refuses by errors of every kind
            return False
        return True

    return accepts


def _draw(seed: int) -> None:
    import msgspec
    import torch

    torch.Generator().manual_seed(seed)
    msgspec.msgpack.encode(seed)  # as the request is sent to the engine


def _seed(value: int) -> None:
    from vllm.utils.torch_utils import set_random_seed

    set_random_seed(value)


def _blocks(value: int) -> None:
    from vllm.v1.core.block_pool import BlockPool

    BlockPool(min(value, 8), enable_caching=False, hash_block_size=1)


def _cache(value: int) -> None:
    from vllm.v1.core.kv_cache_utils import _check_enough_kv_cache_memory

    _check_enough_kv_cache_memory(value, lambda: 0, 1, lambda memory: 1)


_START: Mapping[str, Callable[[int], None]] = {
    "seed": _seed,
    "num_gpu_blocks_override": _blocks,
    "kv_cache_memory_bytes": _cache,
}
"""Arguments that vLLM checks only when the engine has started: the function that does it."""


@contextmanager
def model_folder() -> Iterator[str]:
    """Provide a folder with the configuration of a small model."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(_MODEL))
        yield folder


@contextmanager
def silent() -> Iterator[None]:
    """Keep vLLM from logging what it does with values that are only tried."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
