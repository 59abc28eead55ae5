"""The section `generate` of batch inference: prompts, sampling values, and where the results go."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flagscale.checks.guidance import KEYS, NEGATIVE, Guidance, value_violations
from flagscale.checks.picture_prompts import LISTS
from flagscale.checks.prompts import Prompt, inline_prompts, read_prompts
from flagscale.config.source_map import SourceMap
from flagscale.engines.vllm.sampling import field_violations
from flagscale.errors import Problem, nearest, short
from flagscale.files import name_violation, user_path

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
    guidance_scale: float | None = None
    negative_prompt: str | list[int] | None = None
    """The guidance of all prompts; a line of the prompts file may have its own keys."""
    guided: frozenset[Guidance] = frozenset()
    """The guidance of all prompts that are guided, by these keys or by those of a line; not a key."""

    @property
    def guidance(self) -> dict[str, Any]:
        """The keys of guidance that are given."""
        return {key: value for key in KEYS if (value := getattr(self, key)) is not None}


def read_generate(
    path: str, raw: Mapping[str, Any], source_map: SourceMap, problems: list[Problem]
) -> Generate | None:
    """Return the section at the key path `path`; None if it adds to `problems`."""
    before = len(problems)

    def report(key: str, what: str, hint: str = "") -> None:
        problems.append(Problem(what, source_map.where(f"{path}.{key}" if key else path), hint))

    given = {str(key): value for key, value in raw.items() if value is not None}
    known = {name: type(default) for name, default in vars(Generate()).items() if name != "guided"}
    for key, value in given.items():
        if key not in known:
            report(key, f"unknown key `{key}`", nearest(key, (*known, "mode", *LISTS)))
        elif known[key] in _TEXT and type(value) is not known[key]:
            report(key, f"`{key}` takes {_TEXT[known[key]]}, not {short(value)}")
    unread = source_map.unreadable_in(path)
    if ("prompts" in given) == ("prompts_file" in given) and not unread & {"prompts", "prompts_file"}:
        report("", "give either `prompts` or `prompts_file`")
    of_batch = {key: given[key] for key in KEYS if key in given}
    wrong = [*value_violations(of_batch)]
    for key, what in wrong:
        report(key, what)
    if len(json.dumps(of_batch).encode()) > _MOST_INLINE:
        report(
            NEGATIVE, f"`{NEGATIVE}` is too long for a command line", "put it into lines of a prompts file"
        )
    prompts, found = prompts_of(given, {} if wrong else of_batch)
    for what, hint in found:
        report("prompts" if "prompts" in given else "prompts_file", what, hint)
    is_sure = not (wrong or found or unread.intersection((*KEYS, "prompts", "prompts_file")))
    if len(of_batch) == 1 and is_sure and not any(prompt.guidance for prompt in prompts):
        (key,) = of_batch
        (missing,) = {*KEYS} - {key}
        report(key, f"`{key}` needs `{missing}`, here or in lines of a .jsonl prompts file")
    if isinstance(given.get("batch_size"), int) and given["batch_size"] < 1:
        report("batch_size", "`batch_size` must be at least 1")
    if isinstance(given.get("output"), str) and (what := name_violation(given["output"])):
        report("output", what)
    if str(given.get("output", "")).endswith(".txt"):
        report(
            "output",
            "the results are JSON lines; a text for people is written beside them",
            "name a .jsonl file",
        )
    sampling = given.get("sampling", {})
    if isinstance(sampling, Mapping):
        for key in KEYS:
            if sampling.get(key) is not None:
                report(f"sampling.{key}", f"`{key}` is no field of SamplingParams", "give it in `generate`")
        for key, what in field_violations({name: sampling[name] for name in sampling if name not in KEYS}):
            report(f"sampling.{key}", what)
        extra = sampling.get("extra_args")
        for key in sorted(_IN_ENGINE & extra.keys()) if isinstance(extra, Mapping) else ():
            report(
                "sampling.extra_args",
                f"`{key}` has no effect here",
                f"give {' and '.join(KEYS)} in `generate`",
            )
    else:
        report("sampling", "the fields of SamplingParams are expected here")
    if len(problems) > before:
        return None
    guided = frozenset(prompt.guidance for prompt in prompts if prompt.guidance)
    return Generate(**{**given, "prompts": tuple(given.get("prompts", ()))}, guided=guided)


def prompts_of(
    given: Mapping[str, Any], guidance: Mapping[str, Any]
) -> tuple[list[Prompt], list[tuple[str, str]]]:
    """Return the prompts, and (what is wrong with them, how to fix it); `guidance` holds keys for all."""
    inline, file = given.get("prompts"), given.get("prompts_file")
    if isinstance(inline, list) and inline:
        read = [*inline_prompts(inline, guidance)]
        wrong = [(one, "") for one in read if isinstance(one, str)]
        if len(json.dumps(inline).encode()) > _MOST_INLINE:
            wrong.append(
                ("the prompts are too long for a command line", "put them into a file: `prompts_file`")
            )
        return [one for one in read if isinstance(one, Prompt)], wrong
    if inline is not None:
        return [], [("a list of texts is expected here", "")]
    if not isinstance(file, str):
        return [], []
    if what := name_violation(file):
        return [], [(f"{short(file)}: {what}", "")]
    prompts, broken = read_prompts(user_path(file), guidance)
    return prompts, [(one, "") for one in broken]


_IN_ENGINE = {"guidance_scale", "negative_prompt_token_ids"}
"""The keys by which a guided request reaches the engine (`vllm_flagscale.guidance.request`)."""
_TEXT = {int: "a whole number", bool: "true or false", str: "a text"}
