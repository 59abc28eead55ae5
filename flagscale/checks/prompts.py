"""Prompts for batch inference: inline, or a file of text or JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flagscale.checks.guidance import (
    Guidance,
    chat_violations,
    guidance_of,
    guidance_violations,
    keys_of_line,
)
from flagscale.checks.message_files import file_violations, media_of, shown
from flagscale.errors import short
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
    guidance: Guidance | None = None
    """None for an ordinary prompt, also if it asks for scale 1."""

    def chat(self, wraps_text: bool) -> tuple[dict[str, Any], ...]:
        """Return its messages; those of a text, if `wraps_text`, are one of the user's; else none."""
        if self.text and wraps_text:
            return ({"role": "user", "content": self.text},)
        return self.messages

    @property
    def shown(self) -> str:
        """The prompt as text for people."""
        if self.messages:
            return "\n".join(f"{message['role']}: {shown(message['content'])}" for message in self.messages)
        return self.text or f"{len(self.token_ids)} token ids"


def read_prompts(path: Path, guidance: Mapping[str, Any] | None = None) -> tuple[list[Prompt], list[str]]:
    """Return the prompts of a file, and its problems, each with its line.

    A `.jsonl` file holds one object per line, with one of `prompt`, `prompt_token_ids` and `messages`, and
    perhaps keys of guidance of its own; any other file holds one prompt per line. `guidance` holds valid keys
    of all lines. Empty lines are skipped. Files that messages name must exist.
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
        keys = keys_of_line(prompt.line, guidance or {})
        broken = [what for _, what in guidance_violations(keys)]
        guided = prompt if broken else _with_guidance(prompt, keys)
        prompts.append(replace(guided, number=number))
        if guided.guidance and prompt.messages:
            found = chat_violations(
                prompt.messages, guided.guidance, has_media=bool(media_of(prompt.messages))
            )
            broken += [what for _, what in found]
        broken += file_violations(prompt.messages, path.parent)
        wrong += [f"{path}:{number}: {what}" for what in broken]
    if not prompts and not wrong:
        wrong.append(f"{path}: contains no prompts")
    return prompts, wrong


def inline_prompts(
    given: Sequence[object], guidance: Mapping[str, Any] | None = None
) -> Iterator[Prompt | str]:
    """Yield each prompt of a list in the YAML, or what is wrong with it; `guidance` as for `read_prompts`."""
    keys = keys_of_line({}, guidance or {})
    for number, one in enumerate(given):
        if isinstance(one, str) and one:
            yield _with_guidance(Prompt(one), keys)
        else:
            yield f"prompt {number} is not a text: {short(one)}"


def _with_guidance(prompt: Prompt, keys: Mapping[str, Any]) -> Prompt:
    """Return the prompt with the guidance that keys without violations ask for."""
    asked = guidance_of(keys)
    return prompt if asked is None or asked.is_ordinary else replace(prompt, guidance=asked)


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
