"""Prompts for batch inference: inline, or a file of text or JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flagscale.checks.message_files import file_violations, shown
from flagscale.files import read_regular_text

_KEYS = ("prompt", "prompt_token_ids", "messages")
PLAIN_MAX_TOKENS = 16
"""Tokens of an answer to a plain prompt if nothing else limits it, as in `/v1/completions` of vLLM."""
OF_RESULTS = ("index", "prompt_tokens", "outputs", "prompt_logprobs")
"""The keys that inference adds to the object of a line."""


@dataclass(frozen=True)
class Prompt:
    """One prompt: text, token ids, or the messages of a chat; `line` is the object it came from."""

    text: str = ""
    token_ids: tuple[int, ...] = ()
    messages: tuple[dict[str, Any], ...] = ()
    line: dict[str, Any] = field(default_factory=dict)
    """The whole JSON object of a `.jsonl` file, whose other keys go to the results."""
    number: int = 0
    """Of its line in the file, from 1; 0 for a prompt in the YAML."""

    @property
    def shown(self) -> str:
        """The prompt as text for people."""
        if self.messages:
            return "\n".join(f"{message['role']}: {shown(message['content'])}" for message in self.messages)
        return self.text or f"{len(self.token_ids)} token ids"


def read_prompts(path: Path) -> tuple[list[Prompt], list[str]]:
    """Return the prompts of a file, and its problems, each with its line.

    A `.jsonl` file holds one object per line, with one of `prompt`, `prompt_token_ids` and `messages`; any
    other file holds one prompt per line. Empty lines are skipped. Files that messages name must exist.
    """
    try:
        lines = read_regular_text(path).split("\n")
    except OSError as error:
        return [], [f"{path}: {error.strerror}"]
    except UnicodeDecodeError as error:
        return [], [f"{path}: not UTF-8 text ({error.reason} at byte {error.start})"]
    prompts: list[Prompt] = []
    wrong: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            prompt = _prompt(line) if path.suffix == ".jsonl" else Prompt(line.rstrip("\r"))
        except ValueError as error:
            wrong.append(f"{path}:{number}: {error}")
            continue
        prompts.append(replace(prompt, number=number))
        wrong += [f"{path}:{number}: {what}" for what in file_violations(prompt.messages, path.parent)]
    if not prompts and not wrong:
        wrong.append(f"{path}: contains no prompts")
    return prompts, wrong


def inline_prompts(given: Sequence[object]) -> Iterator[Prompt | str]:
    """Yield each prompt of a list in the YAML, or what is wrong with it."""
    for number, one in enumerate(given):
        yield Prompt(one) if isinstance(one, str) and one else f"prompt {number} is not a text: {one!r}"


def _prompt(line: str) -> Prompt:
    try:
        raw = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON ({error})") from None
    if not isinstance(raw, dict):
        raise ValueError("not a JSON object")
    taken = [key for key in OF_RESULTS if key in raw]
    if taken:
        raise ValueError(f"`{taken[0]}` is reserved for the results: rename it")
    given = [key for key in _KEYS if key in raw]
    if len(given) != 1:
        raise ValueError(f"needs exactly one of {', '.join(_KEYS)}, but has {', '.join(given) or 'none'}")
    value = raw[given[0]]
    if given[0] == "prompt":
        if not isinstance(value, str) or not value:
            raise ValueError("`prompt` must be non-empty text")
        return Prompt(text=value, line=raw)
    if given[0] == "prompt_token_ids":
        if (
            not isinstance(value, list)
            or not value
            or not all(type(one) is int and one >= 0 for one in value)
        ):
            raise ValueError("`prompt_token_ids` must be a non-empty list of whole numbers")
        return Prompt(token_ids=tuple(value), line=raw)
    if not isinstance(value, list) or not value or not all(map(_is_message, value)):
        raise ValueError("`messages` must be a non-empty list of {role, content}")
    return Prompt(messages=tuple(value), line=raw)


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and "content" in value
