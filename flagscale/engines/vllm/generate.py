"""The section `generate` of batch inference: prompts, sampling values, and where the results go."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flagscale.checks.prompts import inline_prompts, read_prompts
from flagscale.config.source_map import SourceMap
from flagscale.engines.vllm.sampling import field_violations
from flagscale.errors import Problem, nearest

_MOST_INLINE = 100_000
"""Bytes of one word of a command line that every kernel accepts."""


@dataclass(frozen=True)
class Generate:
    """The checked section."""

    prompts: tuple[str, ...] = ()
    prompts_file: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 256
    """Prompts that the engine gets per call."""
    chat: bool = False
    """Whether each prompt is a user's message in a chat: the model's chat template is applied to it."""
    output: str = ""
    """The file of the results; default: `results.jsonl` in the run directory."""


def read_generate(
    path: str, raw: Mapping[str, Any], source_map: SourceMap, problems: list[Problem]
) -> Generate | None:
    """Return the section at the key path `path`; None if it adds to `problems`."""
    before = len(problems)

    def report(key: str, what: str, hint: str = "") -> None:
        problems.append(Problem(what, source_map.where(f"{path}.{key}" if key else path), hint))

    given = {str(key): value for key, value in raw.items() if value is not None}
    known = {name: type(default) for name, default in vars(Generate()).items()}
    for key, value in given.items():
        if key not in known:
            report(key, f"unknown key `{key}`", nearest(key, known))
        elif known[key] in _TEXT and type(value) is not known[key]:
            report(key, f"`{key}` takes {_TEXT[known[key]]}, not {value!r}")
    if ("prompts" in given) == ("prompts_file" in given):
        report("", "give either `prompts` or `prompts_file`")
    for what, hint in _prompt_violations(given):
        report("prompts" if "prompts" in given else "prompts_file", what, hint)
    if isinstance(given.get("batch_size"), int) and given["batch_size"] < 1:
        report("batch_size", "`batch_size` must be at least 1")
    if str(given.get("output", "")).endswith(".txt"):
        report(
            "output",
            "the results are JSON lines; a text for people is written beside them",
            "name a .jsonl file",
        )
    sampling = given.get("sampling", {})
    if isinstance(sampling, Mapping):
        for key, what in field_violations(sampling):
            report(f"sampling.{key}", what)
    else:
        report("sampling", "the fields of SamplingParams are expected here")
    if len(problems) > before:
        return None
    return Generate(**{**given, "prompts": tuple(given.get("prompts", ()))})


def _prompt_violations(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (what is wrong with the prompts, how to fix it)."""
    inline, file = given.get("prompts"), given.get("prompts_file")
    if isinstance(inline, list) and inline:
        yield from ((one, "") for one in inline_prompts(inline) if isinstance(one, str))
        if len(json.dumps(inline).encode()) > _MOST_INLINE:
            yield "the prompts are too long for a command line", "put them into a file: `prompts_file`"
    elif inline is not None:
        yield "a list of texts is expected here", ""
    elif isinstance(file, str):
        yield from ((wrong, "") for wrong in read_prompts(Path(file).expanduser())[1])


_TEXT = {int: "a whole number", bool: "true or false", str: "a text"}
