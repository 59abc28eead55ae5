"""One engine of `benchmarks.guidance`, in a process of its own: takes loads, and returns what they cost."""

from __future__ import annotations

import gc
import json
import os
import random
import time
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_PROMPT, _TOP_K, _SCALE = 32, 50, 3.0
_KV_CACHE = 512 << 20


@dataclass(frozen=True)
class Model:
    """A Llama with random weights, and how many tokens its requests generate."""

    layers: int
    hidden: int
    heads: int
    vocabulary: int
    tokens: int


@dataclass(frozen=True)
class Load:
    """Requests that begin together; the `short` ones are ordinary, with half as many tokens."""

    temperature: float
    guided: int = 0
    ordinary: int = 0
    short: int = 0


@dataclass(frozen=True)
class Cost:
    """What the steps of an engine cost until all requests have ended."""

    steps: tuple[float, ...]
    """CPU seconds of each step."""
    short_steps: int
    """The number of steps until the short requests have ended."""
    blocks: int
    """The most KV cache blocks used."""


def serve(commands: Connection, folder: Path, model: Model, guides: bool) -> None:
    """Start an engine, and run what arrives on the connection until its other end is closed."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    warnings.simplefilter("ignore")
    engine = _engine(folder, model, guides)
    commands.send("ready")
    try:
        while True:
            commands.send(_run(engine, commands.recv(), model))
    except EOFError:
        return


def _engine(folder: Path, model: Model, guides: bool) -> Any:
    from vllm import LLM

    from vllm_flagscale.guidance.wiring import PROCESSOR, SCHEDULER

    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": model.hidden,
        "intermediate_size": 2 * model.hidden,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.heads,
        "vocab_size": model.vocabulary,
        "max_position_embeddings": 512,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    wired = {"scheduler_cls": SCHEDULER, "logits_processors": [PROCESSOR]} if guides else {}
    llm = LLM(
        model=str(folder),
        load_format="dummy",
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=256,
        max_num_seqs=64,
        block_size=32,
        kv_cache_memory_bytes=_KV_CACHE,
        enable_prefix_caching=False,
        enforce_eager=True,
        **wired,
    )
    return llm.llm_engine


def _run(engine: Any, load: Load, model: Model) -> Cost:
    draw = random.Random(0)
    short = set()

    def add(name: str, tokens: int, **more: Any) -> None:
        from vllm import SamplingParams

        prompt, more["negative_prompt_token_ids"] = (
            [draw.randrange(3, model.vocabulary) for _ in range(_PROMPT)] for _ in range(2)
        )
        params = SamplingParams(
            temperature=load.temperature,
            top_k=_TOP_K if load.temperature else 0,
            max_tokens=tokens,
            ignore_eos=True,
            detokenize=False,
            extra_args=more if "guidance_scale" in more else None,
        )
        engine.add_request(name, {"prompt_token_ids": prompt}, params)

    gc.collect()
    for number in range(load.guided):
        add(f"guided {number}", model.tokens, guidance_scale=_SCALE)
    for number in range(load.ordinary):
        add(f"ordinary {number}", model.tokens)
    for number in range(load.short):
        short.add(f"short {number}")
        add(f"short {number}", model.tokens // 2)
    pool = engine.engine_core.engine_core.scheduler.kv_cache_manager.block_pool
    free = pool.get_num_free_blocks()
    steps: list[float] = []
    short_steps, blocks = 0, 0
    while engine.has_unfinished_requests():
        begun = time.process_time()
        ended = engine.step()
        steps.append(time.process_time() - begun)
        short -= {one.request_id for one in ended if one.finished}
        blocks = max(blocks, free - pool.get_num_free_blocks())
        if not short and not short_steps:
            short_steps = len(steps)
    return Cost(tuple(steps), short_steps, blocks)
