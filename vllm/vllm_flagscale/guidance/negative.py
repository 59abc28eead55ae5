"""The token ids of negative prompts in a batch, tokenized as prompts of their kind are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flagscale.checks.guidance import NEGATIVE, negative_chat
from flagscale.checks.prompts import Prompt
from vllm_flagscale.guidance.request import extra_args, id_violations, violations


def negatives(
    engine: Any, prompts: Iterable[tuple[int, Prompt]], *, chat: bool
) -> tuple[dict[int, list[int]], list[str]]:
    """Return the ids of the negative prompt of each guided prompt, by its place, and what is wrong with them.

    Ids are taken as they are. A text becomes what `engine.generate`, or for chats `engine.chat`, makes of it.
    `chat`: whether plain texts are sent as chats.
    """
    from vllm.exceptions import VLLMValidationError

    found: dict[int, list[int]] = {}
    plain: dict[str, list[int]] = {}
    wrong: list[str] = []
    model = engine.model_config
    for place, prompt in prompts:
        if prompt.guidance is None:
            continue
        negative, messages = prompt.guidance.negative, prompt.chat(chat)
        try:
            if not isinstance(negative, str):
                found[place] = list(negative)
            elif messages:
                found[place] = _of_chat(engine, negative_chat(messages, negative))
            else:
                if negative not in plain:
                    plain[negative] = _ids(engine.renderer.render_cmpl([{"prompt": negative}]))
                found[place] = plain[negative]
            wrong += [
                f"prompt {place}: {what}"
                for what in id_violations(NEGATIVE, found[place], model.get_vocab_size(), model.max_model_len)
            ]
        except VLLMValidationError as error:  # it is too long
            wrong.append(f"prompt {place}: `{NEGATIVE}`: {error}")
    return found, wrong


def _of_chat(engine: Any, messages: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the ids of a chat as `LLM.chat` of vLLM 0.32 renders it (`entrypoints/common/offline.py`)."""
    from vllm.renderers import ChatParams
    from vllm.utils.mistral import is_mistral_tokenizer

    renderer = engine.renderer
    tokenize = is_mistral_tokenizer(renderer.tokenizer) or engine.model_config.enable_prompt_embeds
    chat = ChatParams(
        chat_template=engine.chat_template,
        chat_template_content_format="auto",
        chat_template_kwargs={
            "add_generation_prompt": True,
            "continue_final_message": False,
            "tokenize": tokenize,
        },
    )
    tokenization = renderer.default_chat_tok_params.with_kwargs(add_special_tokens=False)
    _, rendered = renderer.render_chat([messages], chat, tokenization)
    return _ids(rendered)


def _ids(rendered: Sequence[Mapping[str, Any]]) -> list[int]:
    return list(rendered[0]["prompt_token_ids"])


def guided_params(params: Any, scale: float, negative: Sequence[int]) -> Any:
    """Return the sampling parameters of a guided prompt whose negative prompt has these ids."""
    guided = params.clone()
    guided.extra_args = {**(params.extra_args or {}), **extra_args(scale, negative)}
    return guided


def sampling_violations(*each: Any) -> list[str]:
    """Return why guided prompts cannot have one of these sampling parameters (None for no such prompts)."""
    asked = [guided_params(params, 2.0, [0]) for params in each if params is not None]
    return [*dict.fromkeys(what for params in asked for what in violations(params))]
