"""The section `generate` of an inference: what is generated from what, checked without vLLM."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flagscale.config.locate import Locator
from flagscale.engines.vllm_catalog import vllm_catalog
from flagscale.errors import Problem, nearest
from flagscale.inputs.prompts import inline_prompts, read_prompts

_MOST_INLINE = 100_000
"""Bytes of one word of a command line that every kernel takes."""


@dataclass(frozen=True)
class Generate:
    """The section, checked."""

    prompts: tuple[str, ...] = ()
    prompts_file: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 256
    """Prompts that the engine gets at a time."""
    chat: bool = False
    """Whether each prompt is what a user says in a chat: the model's chat template is put around it."""
    output: str = ""
    """Where the results go; default: `results.jsonl` in the run directory."""


def read_generate(
    path: str, raw: Mapping[str, Any], locator: Locator, problems: list[Problem]
) -> Generate | None:
    """Return the section at the key path `path`; None where `problems` says what is wrong with it."""
    before = len(problems)

    def tell(key: str, what: str, hint: str = "") -> None:
        problems.append(Problem(what, locator.where(f"{path}.{key}" if key else path), hint))

    given = {str(key): value for key, value in raw.items() if value is not None}
    known = {name: type(default) for name, default in vars(Generate()).items()}
    for key, value in given.items():
        if key not in known:
            tell(key, f"unknown key `{key}`", nearest(key, known))
        elif known[key] in _TEXT and type(value) is not known[key]:
            tell(key, f"`{key}` takes {_TEXT[known[key]]}, not {value!r}")
    if ("prompts" in given) == ("prompts_file" in given):
        tell("", "give `prompts` or `prompts_file`, one of them")
    for what, hint in _prompt_findings(given):
        tell("prompts" if "prompts" in given else "prompts_file", what, hint)
    if isinstance(given.get("batch_size"), int) and given["batch_size"] < 1:
        tell("batch_size", "`batch_size` is at least 1")
    if str(given.get("output", "")).endswith(".txt"):
        tell("output", "the results are JSON lines; the text to read lies beside them", "name a .jsonl file")
    sampling = given.get("sampling", {})
    if isinstance(sampling, Mapping):
        for key, what in _sampling_findings(sampling):
            tell(f"sampling.{key}", what)
    else:
        tell("sampling", "the fields of SamplingParams are expected here")
    if len(problems) > before:
        return None
    return Generate(**{**given, "prompts": tuple(given.get("prompts", ()))})


def _prompt_findings(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (what is wrong with the prompts, how to mend it)."""
    inline, file = given.get("prompts"), given.get("prompts_file")
    if isinstance(inline, list) and inline:
        yield from ((one, "") for one in inline_prompts(inline) if isinstance(one, str))
        if len(json.dumps(inline).encode()) > _MOST_INLINE:
            yield "too long for a command line", "put them into a file: `prompts_file`"
    elif inline is not None:
        yield "a list of texts is expected here", ""
    elif isinstance(file, str):
        yield from ((wrong, "") for wrong in read_prompts(Path(file).expanduser())[1])


_TEXT = {int: "a whole number", bool: "true or false", str: "a text"}
_JSON: Mapping[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "list": (list,),
    "dict": (dict,),
}


def _sampling_findings(sampling: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    fields = vllm_catalog().sampling
    for key, value in sampling.items():
        kinds = fields.get(key)
        if kinds is None:
            hint = nearest(str(key), fields)
            yield str(key), f"SamplingParams has no field `{key}`{f'; {hint}' if hint else ''}"
        elif value is not None and type(value) not in sum((_JSON[kind] for kind in kinds), ()):
            yield str(key), f"`{key}` takes {' or '.join(kinds)}, not {value!r}"
