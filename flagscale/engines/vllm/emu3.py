"""Batches of Emu3: the keys of `generate` that its modes add, what they need of a model, the program's words."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flagscale.checks.emu3_folder import area_of, folder_problem, name_problem, positions_of
from flagscale.checks.model_folder import is_path, read_config
from flagscale.checks.picture_prompts import (
    IMAGE,
    KEYS,
    LISTS,
    MODES,
    Canvas,
    PictureBatch,
    batch_violations,
    image_problem,
    is_address,
    prompt_violations,
)
from flagscale.checks.prompts import Prompt, read_prompts
from flagscale.config.source_map import SourceMap
from flagscale.engines.vllm.catalog import vllm_catalog
from flagscale.errors import Problem, nearest

_SAMPLING = ("n", "seed", "temperature", "top_k", "top_p", "min_p")
"""The fields of SamplingParams that a picture can have."""
_COMPUTED = "max_tokens"
_OWN = ("mode", *LISTS)
Report = Callable[[str, str, str], None]
"""Called with a key of the section, what is wrong, and a hint."""


def take_pictures(
    path: str,
    raw: Mapping[str, Any],
    engine: Mapping[str, Any],
    source_map: SourceMap,
    problems: list[Problem],
    notices: list[str],
) -> tuple[PictureBatch | None, dict[str, Any]]:
    """Return what the section at the key path `path` says about pictures, and its other keys.

    The batch is None without a mode, and if it adds to `problems`. `engine` holds the arguments of the engine,
    by dest, as far as they are known.
    """
    before = len(problems)

    def report(key: str, what: str, hint: str = "") -> None:
        problems.append(Problem(what, source_map.where(f"{path}.{key}" if key else path), hint))

    given = {str(key): value for key, value in raw.items() if value is not None}
    mode = given.get("mode")
    if mode not in MODES:
        if mode is not None:
            report("mode", f"`mode` takes {' or '.join(MODES)}, not {mode!r}", nearest(str(mode), MODES))
        for key in (key for key in LISTS if mode is None and key in given):
            needed = next(name for name in MODES if key in KEYS[name])
            report(key, f"`{key}` needs `mode: {needed}`, which is for Emu3")
        return None, {key: value for key, value in raw.items() if key not in _OWN}
    rest = {key: value for key, value in raw.items() if key not in (*_OWN, *KEYS[mode])}
    if mode == IMAGE and isinstance(sampling := given.get("sampling"), Mapping):
        rest["sampling"] = {key: value for key, value in sampling.items() if key != _COMPUTED}
        _check_sampling(sampling, report)
        if sampling.get(_COMPUTED) is not None:
            where = source_map.where(f"{path}.sampling.{_COMPUTED}")
            notices.append(f"{where}: has no effect: the number of tokens is computed from a picture's size")
    own = _lists(given, mode, report)
    if len(problems) > before:
        return None, rest
    batch = PictureBatch(mode=mode, **own)
    _check(batch, given, engine, report)
    return (batch if len(problems) == before else None), rest


def _check_sampling(sampling: Mapping[str, Any], report: Report) -> None:
    for key in map(str, sampling):
        if key in vllm_catalog().sampling and key not in (*_SAMPLING, _COMPUTED) and sampling[key] is not None:
            report(f"sampling.{key}", f"`{key}` cannot be used for pictures", f"valid: {', '.join(_SAMPLING)}")


def _lists(given: Mapping[str, Any], mode: str, report: Report) -> dict[str, Any]:
    """Return the values of the mode's own keys; a text for all prompts is a list of one."""
    own = {key: given[key] for key in KEYS[mode] if key in given}
    for key in (*LISTS, "chat"):
        if key in given and key not in own:
            report(key, f"`{key}` has no effect with `mode: {mode}`", "remove the key")
    for key in LISTS.keys() & own.keys():
        values = own[key] if isinstance(own[key], list) else [own[key]]
        if not values or not all(isinstance(one, str) and one for one in values):
            report(key, f"`{key}` takes one text for all prompts or a list of texts, not {own[key]!r}", "")
        elif key == "images":
            values = [one if is_address(one) else str(Path(one).expanduser().absolute()) for one in values]
        own[key] = tuple(values)
    return own


def _check(batch: PictureBatch, given: Mapping[str, Any], engine: Mapping[str, Any], report: Report) -> None:
    """Report what is wrong with the batch as a whole, and then with each prompt."""
    file = str(given.get("prompts_file", ""))
    inline = given.get("prompts")
    if file:
        prompts = read_prompts(Path(file).expanduser())[0]
    else:
        prompts = [Prompt(str(one)) for one in inline] if isinstance(inline, list) else []
    wrong = [*batch_violations(batch, prompts, is_file=bool(file))]
    for key, what in wrong:
        report(key, what, "")
    for number, image in enumerate(batch.images):
        if what := image_problem(image, Path()):
            report(f"images.{number}", what, "")
    if wrong:
        return
    ...
