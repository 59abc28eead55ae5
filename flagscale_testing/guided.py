"""Random Llamas for guided requests, and the tokens that transformers generates for the same requests."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Size:
    """The shape of a random Llama; the tokenizer uses the first 258 ids of the vocabulary."""

    vocabulary: int
    hidden: int
    layers: int
    positions: int = 512


TINY = Size(vocabulary=640, hidden=128, layers=2)
DEEP = Size(vocabulary=32_000, hidden=256, layers=8, positions=2048)
WIDE = Size(vocabulary=151_936, hidden=128, layers=2, positions=2048)


@dataclass(frozen=True)
class Case:
    """A guided request, in token ids."""

    prompt: tuple[int, ...]
    negative: tuple[int, ...]
    scale: float


def make_llama(folder: Path, size: Size = TINY, seed: int = 0) -> Path:
    """Save a random Llama in float32, with a byte-level tokenizer and a chat template; return `folder`.

    Plain prompts begin with `<bos>` (257), chats by their template do not; `<eos>` is 0. The logits are
    uneven, so that greedy choices do not depend on rounding.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    byte_level_tokenizer().save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=size.vocabulary,
        hidden_size=size.hidden,
        intermediate_size=2 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=size.positions,
        initializer_range=0.2,
        bos_token_id=257,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).float().save_pretrained(folder)
    return folder


def byte_level_tokenizer() -> Any:
    """Return a tokenizer with one token per byte: `<eos>` is 0, the bytes are 1 to 256, `<bos>` is 257."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokens = ["<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "<bos>"]
    byte_level = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, []))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    # Plain prompts begin with a token that chats, by their template, do not begin with.
    begin = ("<bos>", tokens.index("<bos>"))
    byte_level.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[begin])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level, eos_token="<eos>", bos_token="<bos>")
    tokenizer.chat_template = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    return tokenizer


LENGTHS = ((1, 1), (1, 5), (5, 1), (17, 33), (33, 17), (65, 33), (16, 16), (32, 64), (40, 2))
"""Tokens of the prompt and of the negative prompt: short, unequal, and at the edges of cache blocks."""


def cases(
    lengths: Sequence[tuple[int, int]] = LENGTHS,
    scales: Sequence[float] = (1.5, 3.0, 0.5, 0.0, 7.5),
    vocabulary: int = TINY.vocabulary,
    seed: int = 0,
) -> Iterator[Case]:
    """Yield a request of random tokens per pair of lengths; the scales repeat in their order."""
    rng = random.Random(seed)
    for index, both in enumerate(lengths):
        prompt, negative = (tuple(rng.randrange(3, vocabulary) for _ in range(length)) for length in both)
        yield Case(prompt, negative, scales[index % len(scales)])


def greedy_answers(folder: Path, requests: Sequence[Case], tokens: int) -> list[list[int]]:
    """Return the tokens that transformers generates for each request at temperature 0, in float32.

    The end of a text is ignored, so every answer has `tokens` tokens. Scale 0, which transformers does not
    take, is the answer to the negative prompt alone.
    """
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    return [_greedy(model, request, tokens) for request in requests]


def _greedy(model: Any, request: Case, tokens: int) -> list[int]:
    import torch

    prompt = torch.tensor([request.prompt if request.scale else request.negative])
    guidance: dict[str, Any] = {}
    if request.scale not in (0, 1):
        guidance = {
            "guidance_scale": request.scale,
            "negative_prompt_ids": torch.tensor([request.negative]),
        }
    with torch.no_grad():
        answer = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=tokens,
            pad_token_id=0,
            **guidance,
        )
    return [int(token) for token in answer[0, prompt.shape[1] :]]
