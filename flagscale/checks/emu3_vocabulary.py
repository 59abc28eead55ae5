"""The tokens by which Emu3 writes a picture, with their ids in a model's `vocabulary_map`."""

from __future__ import annotations

from collections.abc import Mapping

from flagscale.frozen import dataclass

PAD, BEGIN_OF_TEXT, END_OF_TEXT = "<|endoftext|>", "<|extra_203|>", "<|extra_204|>"
IMAGE = "<image>"
"""The placeholder of a picture in a question."""
BEGIN_OF_IMAGE, END_OF_IMAGE = "<|image start|>", "<|image end|>"
BEGIN_OF_CODES = "<|image token|>"
"""Between the size of a picture (in codes, as text) and its codes."""
END_OF_LINE, END_OF_FRAME = "<|extra_200|>", "<|extra_201|>"
CODE = "<|visual token {:06d}|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}You are a helpful assistant.{% endif %}"
    "{% if message['role'] == 'user' %} USER: {% endif %}"
    "{% if message['role'] == 'assistant' %} ASSISTANT: {% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] != 'text' %}<image>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'user' %}.{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
"""The form that Emu3-Chat was trained with: `chat_template` of BAAI's processing_emu3.py, as in v0.6.0.
Pictures come first, and a full stop follows the question. BOS is not in it, because transformers' processor
adds it, also to a template that has it: two in 5.19 (`Emu3Processor.prepare_inputs_layout` does not see the
`add_special_tokens=False` of `apply_chat_template`). For vLLM, see `vllm_flagscale.emu3.prompts`."""


@dataclass(frozen=True)
class Vocabulary:
    """The ids that a picture is made of; its codes are consecutive."""

    first_code: int
    codes: int
    """The size of the codebook."""
    end_of_line: int
    end_of_frame: int
    end_of_image: int
    end_of_text: int


def vocabulary_of(ids: Mapping[str, int] | None, codes: int) -> Vocabulary:
    """Return the ids of a picture's tokens.

    Args:
        ids: `vocabulary_map` of the model's configuration.
        codes: the size of its codebook.

    Raises:
        ValueError: the map is missing, lacks tokens, or does not number the codes in their order.
    """
    if not ids:
        raise ValueError("`vocabulary_map` is missing: the ids of a picture's tokens are unknown")
    marks = (END_OF_LINE, END_OF_FRAME, END_OF_IMAGE, END_OF_TEXT)
    names = [*marks, *(CODE.format(code) for code in range(codes))]
    if missing := [name for name in names if type(ids.get(name)) is not int]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"`vocabulary_map` has no id for {missing[0]}{more}")
    first = ids[CODE.format(0)]
    for code in range(codes):
        if ids[name := CODE.format(code)] != first + code:
            raise ValueError(f"`vocabulary_map`: {name} has id {ids[name]}, not {first + code}")
    return Vocabulary(first, codes, *(ids[name] for name in marks))
