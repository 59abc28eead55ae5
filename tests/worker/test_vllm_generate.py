"""Batch inference: prompts that the engine would refuse, which it does one at a time and with a traceback."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from flagscale.checks.prompts import Prompt
from vllm_flagscale.generate import _prompt_violations

TOKENS, LENGTH = 300, 8


def engine(tokenizer: Any, **limits: int) -> Any:
    config = SimpleNamespace(
        max_model_len=LENGTH, get_vocab_size=lambda: TOKENS, skip_tokenizer_init=tokenizer is None
    )
    processor = SimpleNamespace(info=SimpleNamespace(allowed_mm_limits=limits)) if limits else None
    return SimpleNamespace(
        llm_engine=SimpleNamespace(model_config=config),
        get_tokenizer=lambda: tokenizer,
        renderer=SimpleNamespace(mm_processor=processor),
    )


WORDS = SimpleNamespace(encode=str.split, max_token_id=309)


def test_all_prompts_that_the_engine_would_refuse_are_listed() -> None:
    prompts = [Prompt("a b"), Prompt("a " * 8), Prompt(token_ids=(310, 1)), Prompt(token_ids=(1,) * 9)]
    wrong = _prompt_violations(engine(WORDS), list(enumerate(prompts)))
    assert wrong[0].startswith("prompt 1 has 8 tokens; the limit is 8")
    assert [line.partition(";")[0] for line in wrong] == [
        "prompt 1 has 8 tokens",
        "prompt 2: 310 is not an id of the model's 300 tokens",
        "prompt 3 has 9 tokens",
    ]


def test_ids_that_only_the_tokenizer_has_are_accepted() -> None:
    assert _prompt_violations(engine(WORDS), [(0, Prompt(token_ids=(309, 0)))]) == []
    assert _prompt_violations(engine(None), [(0, Prompt(token_ids=(299,)))]) == []
    (wrong,) = _prompt_violations(engine(None), [(0, Prompt(token_ids=(300,)))])
    assert "300 is not an id of the model's 300 tokens" in wrong


def test_all_chats_with_too_many_pictures_are_listed() -> None:
    def chat(*kinds: str) -> Prompt:
        parts = [{"type": f"{kind}_url", f"{kind}_url": {"url": "a"}} for kind in kinds]
        return Prompt(messages=({"role": "user", "content": parts},))

    chats = [chat("image", "image"), chat("image", "image", "image"), chat("video"), chat()]
    assert _prompt_violations(engine(WORDS, image=2), list(enumerate(chats))) == [
        "prompt 1 has 3 of type image; the limit is 2 (`limit_mm_per_prompt`)",
        "prompt 2 has 1 of type video; the model takes none",
    ]
    assert _prompt_violations(engine(WORDS), [(0, chat("image"))]) == [
        "prompt 0 has 1 of type image; the model takes none"
    ]
