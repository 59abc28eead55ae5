"""Batches of Emu3: the keys of `generate` that its modes add, and what they need of a model."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flagscale.checks import emu3
from flagscale.checks.emu3_folder import area_of, folder_problem, positions_of
from flagscale.checks.guidance import KEYS as GUIDANCE
from flagscale.checks.guidance import NEGATIVE, SCALE, value_violations
from flagscale.checks.model_folder import is_path, read_config
from flagscale.checks.picture_prompts import (
    IMAGE,
    KEYS,
    LISTS,
    MODES,
    UNDERSTAND,
    Canvas,
    PictureBatch,
    batch_violations,
    is_address,
    item_violations,
    prompt_problems,
)
from flagscale.config.engine_args import EngineArguments
from flagscale.config.source_map import SourceMap
from flagscale.engines.vllm.catalog import vllm_catalog
from flagscale.engines.vllm.emu3_model import original_model
from flagscale.engines.vllm.generate import prompts_of
from flagscale.errors import Problem, nearest, short
from flagscale.files import user_path

_SAMPLING = ("n", "seed", "temperature", "top_k", "top_p", "min_p")
"""The fields of SamplingParams that a picture can have."""
_COMPUTED = "max_tokens"
_OF_FOLDER = ("generation_config", "override_generation_config")
"""Arguments of the engine about sampling values of the model's folder, which are those of texts."""
_OWN = ("mode", *LISTS)
_BESIDE = (".html", ".png")
_DEFAULTS = {SCALE: emu3.SCALE, NEGATIVE: emu3.NEGATIVE}
Report = Callable[[str, str, str], None]
"""Called with a key of the section, what is wrong, and a hint."""


def take_pictures(
    path: str,
    raw: Mapping[str, Any],
    engine: EngineArguments | None,
    source_map: SourceMap,
    problems: list[Problem],
    notices: list[str],
) -> tuple[PictureBatch | None, dict[str, Any]]:
    """Return what the section at the key path `path` says about pictures, and its other keys.

    The batch is None without a mode, and if it adds to `problems`; so does a model that is no Emu3. `engine`:
    the arguments of the engine, if they can be read.
    """
    before = len(problems)

    def report(key: str, what: str, hint: str = "") -> None:
        problems.append(Problem(what, source_map.where(f"{path}.{key}" if key else path), hint))

    given = {str(key): value for key, value in raw.items() if value is not None}
    mode = given.get("mode")
    unread = source_map.unreadable_in(path)
    if mode not in MODES:
        if mode is not None:
            report("mode", f"`mode` takes {' or '.join(MODES)}, not {short(mode)}", nearest(str(mode), MODES))
        for key in (key for key in LISTS if mode is None and key in given and "mode" not in unread):
            needed = next(name for name in MODES if key in KEYS[name])
            report(key, f"`{key}` needs `mode: {needed}`, which is for Emu3")
        # With a mode that cannot be read, one key of guidance is enough: the other one may have a default.
        taken = _OWN if mode is None and "mode" not in unread else (*_OWN, *_one_of_guidance(given))
        return None, {key: value for key, value in raw.items() if key not in taken}
    if engine and "model" in engine.paths and (what := _model_problem(engine.values)):
        problems.append(Problem(what, source_map.where(engine.paths["model"])))
    of_lines = {one: several for several, one in LISTS.items() if one in given}
    for one, several in of_lines.items():
        report(one, f"unknown key `{one}`, which lines of a prompts file have", f"did you mean `{several}`?")
    refused = GUIDANCE if mode == UNDERSTAND else ()
    taken = (*_OWN, *KEYS[mode], *of_lines, *refused)
    rest = {key: value for key, value in raw.items() if key not in taken}
    if mode == IMAGE and isinstance(sampling := given.get("sampling"), Mapping):
        rest["sampling"] = {key: value for key, value in sampling.items() if key != _COMPUTED}
        _check_sampling(sampling, report)
        if sampling.get(_COMPUTED) is not None:
            where = source_map.where(f"{path}.sampling.{_COMPUTED}")
            notices.append(f"{where}: has no effect: the number of tokens is computed from a picture's size")
    given_to_engine = engine.paths if engine else {}
    for key in _OF_FOLDER if mode == IMAGE else ():
        if key in given_to_engine:
            what = f"`{key}` has no effect on pictures"
            problems.append(Problem(what, source_map.where(given_to_engine[key]), "use `sampling`"))
    if mode == IMAGE:
        rest |= {key: _DEFAULTS[key] for key in GUIDANCE if key not in given}
        if Path(str(given.get("output", ""))).suffix in _BESIDE:
            what = "the results are JSON lines; pictures and a page that shows them are written beside them"
            report("output", what, "name a .jsonl file")
    own = _lists(given, mode, report)
    if len(problems) > before or unread.intersection(("prompts", "prompts_file", *KEYS[mode])):
        return None, rest
    batch = PictureBatch(mode=mode, **own)
    _check(batch, rest, _canvas(engine.values) if engine else Canvas(), report)
    return (batch if len(problems) == before else None), rest


def _one_of_guidance(given: Mapping[str, Any]) -> tuple[str, ...]:
    keys = tuple(key for key in GUIDANCE if key in given)
    return keys if len(keys) == 1 else ()


def _check_sampling(sampling: Mapping[str, Any], report: Report) -> None:
    for key in map(str, sampling):
        if (
            key in vllm_catalog().sampling
            and key not in (*_SAMPLING, _COMPUTED)
            and sampling[key] is not None
        ):
            report(
                f"sampling.{key}", f"`{key}` cannot be used for pictures", f"valid: {', '.join(_SAMPLING)}"
            )


def _lists(given: Mapping[str, Any], mode: str, report: Report) -> dict[str, Any]:
    """Return the values of the mode's own keys; a text for all prompts is a list of one."""
    own = {key: given[key] for key in KEYS[mode] if key in given}
    for key in (*LISTS, "chat", *(GUIDANCE if mode == UNDERSTAND else ())):
        if key in given and key not in own:
            report(key, f"`{key}` has no effect with `mode: {mode}`", "remove the key")
    for key in LISTS.keys() & own.keys():
        values = own[key] if isinstance(own[key], list) else [own[key]]
        if not values or not all(isinstance(one, str) and one for one in values):
            what = "takes one text for all prompts or a list of texts"
            quotes = "put ratios in quotes: YAML reads 1:1 as the number 61" if key == "ratios" else ""
            report(key, f"`{key}` {what}, not {short(own[key])}", quotes)
        elif key == "images":
            values = [one if is_address(one) else str(user_path(one).absolute()) for one in values]
        own[key] = tuple(values)
    return own


def _check(batch: PictureBatch, given: Mapping[str, Any], canvas: Canvas, report: Report) -> None:
    """Report what is wrong with the batch as a whole, and then with each prompt."""
    file, inline = given.get("prompts_file"), given.get("prompts")
    if not isinstance(file, str) and not (isinstance(inline, list) and inline):
        for key, what in item_violations(batch):  # that there are no prompts is reported for every batch
            report(key, what, "")
        return
    path = user_path(file) if isinstance(file, str) else None
    guidance = {key: given[key] for key in GUIDANCE if given.get(key) is not None}
    prompts, unreadable = prompts_of(given, {} if any(value_violations(guidance)) else guidance)
    wrong = [*batch_violations(batch, len(inline) if isinstance(inline, list) else None)]
    for key, what in wrong:
        report(key, what, "")
    # Lines know their numbers; of prompts in the YAML, the places would be wrong without the unreadable ones.
    for what in () if wrong or (unreadable and not path) else prompt_problems(batch, prompts, canvas, path):
        report("prompts_file" if path else "prompts", what, "")


def _model_problem(engine: Mapping[str, Any]) -> str:
    """Return why a model is no Emu3, as far as its folder shows it; "" for those that no engine can load."""
    folder = Path(str(engine["model"]))
    # A folder without a configuration is reported already, as for every model; so are BAAI's original ones.
    is_known = os.path.isfile(folder / "config.json")  # False also for names that no file system takes
    return folder_problem(folder) if is_known and not original_model(engine) else ""


def _canvas(engine: Mapping[str, Any]) -> Canvas:
    """Return what the model's folder says; for a model on a hub, what is published, and the limit given."""
    folder = Path(str(engine.get("model")))
    limit = engine.get("max_model_len")
    limits = [limit] if type(limit) is int and limit > 0 else []
    try:
        config = read_config(folder)
        return Canvas(area_of(folder), min([positions_of(config), *limits]))
    except ValueError:  # on a hub, or reported already
        return Canvas() if is_path(str(engine.get("model"))) else Canvas(positions=min(limits, default=None))


def words_of(batch: PictureBatch, pictures: Path) -> tuple[str, ...]:
    """Return arguments of `vllm_flagscale.generate`; each path is a word of its own: hosts may rename it."""
    keys = {key: value for key, value in asdict(batch).items() if value not in (None, ()) and key != "images"}
    folder = ("--pictures", str(pictures)) if batch.mode == IMAGE else ()
    images = ("--images", *batch.images) if batch.images else ()
    return ("--emu3", json.dumps(keys, ensure_ascii=False), *images, *folder)
