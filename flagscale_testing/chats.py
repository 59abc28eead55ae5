"""Short conversations in the form of OpenAI, files of them, and a chat template that writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def conversation(question: str, answer: str) -> dict[str, Any]:
    """Return a conversation of one question and its answer."""
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


CONVERSATIONS = [conversation(f"{number}?", "yes! " * number) for number in range(1, 13)]
"""Of twelve lengths."""


def write_lines(path: Path, *lines: Any) -> Path:
    """Write a file with a line per value: JSON of it, or the text itself; return its path."""
    path.write_text("".join(f"{one if isinstance(one, str) else json.dumps(one)}\n" for one in lines))
    return path
