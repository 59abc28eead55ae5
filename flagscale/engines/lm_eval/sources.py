"""Where the models of an evaluation come from: one server, one folder, or checkpoints of a training."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flagscale.checks.lora import trains_adapters
from flagscale.checks.pretrained import is_huggingface
from flagscale.errors import Violation, nearest, short
from flagscale.run.checkpoints import TRACKER, folder_of, newest, read_arguments
from flagscale.run.manifest import iteration_of
from flagscale.run.rundir import RunDir

COMPLETIONS, CHAT = "local-completions", "local-chat-completions"
_FOLDERS = ("hf", "vllm")
MODELS = (*_FOLDERS, COMPLETIONS, CHAT)
"""The harness's models that FlagScale runs."""
_PATHS = {COMPLETIONS: "/v1/completions", CHAT: "/v1/chat/completions"}
OWN = ("checkpoints", "iterations", "keep_converted")
"""FlagScale's keys beside the harness's."""
_ELSEWHERE = {
    **dict.fromkeys(
        ("batch_size", "max_batch_size", "device", "trust_remote_code"), "give it beside `model_args`"
    ),
    **dict.fromkeys(
        ("auth_token", "header"), "set OPENAI_API_KEY in experiment.envs, which is never written"
    ),
}
"""Keys of `model_args` -> where they belong: they would contradict an argument, or show a secret."""


@dataclass(frozen=True)
class CheckpointChoice:
    """Models to evaluate one after another: folders, or iterations of one folder of checkpoints."""

    folders: tuple[str, ...] = ()
    iterations: tuple[int, ...] = ()
    all_iterations: bool = False
    keep_converted: bool = False


def read_checkpoints(own: Mapping[str, Any]) -> tuple[CheckpointChoice, list[Violation]]:
    """Return FlagScale's own keys, and what is wrong with their types, by key."""
    wrong: list[Violation] = []
    given, iterations = own.get("checkpoints"), own.get("iterations")
    folders = [given] if isinstance(given, str) else given or []
    if not isinstance(folders, list) or not all(isinstance(one, str) and one for one in folders):
        wrong.append(
            ("checkpoints", f"`checkpoints` takes a folder or a list of folders, not {short(given)}")
        )
        folders = []
    numbers = iterations if isinstance(iterations, list) else [iterations]
    if iterations in (None, "all"):
        numbers = []
    elif not numbers or not all(type(one) is int and one >= 0 for one in numbers):
        wrong.append(
            ("iterations", f"`iterations` takes `all` or a list of iterations, not {short(iterations)}")
        )
        numbers = []
    if iterations is not None and len(folders) != 1 and not wrong:
        wrong.append(("iterations", "`iterations` chooses among the checkpoints of one folder: give one"))
    if not isinstance(own.get("keep_converted", False), bool):
        wrong.append(("keep_converted", "`keep_converted` is a switch: use true or false"))
    kept = own.get("keep_converted") is True
    return CheckpointChoice(tuple(folders), tuple(sorted({*numbers})), iterations == "all", kept), wrong


def source_violations(values: Mapping[str, Any], checkpoints: CheckpointChoice) -> Iterator[Violation]:
    """Yield what is wrong with the source of the models, by key; `values` are the harness's arguments.

    A key of `model_args` is blamed as `model_args.KEY`.
    """
    model, args = values["model"] or "hf", values["model_args"] or {}
    if model not in MODELS:
        yield "model", f"`model` cannot be {short(model)}; {nearest(str(model), MODELS)}"
        return
    for key, hint in _ELSEWHERE.items():
        if key in args:
            yield f"model_args.{key}", f"`{key}` cannot be given in `model_args`: {hint}"
    given = [key for key in ("pretrained", "base_url") if args.get(key)]
    given += ["checkpoints"] if checkpoints.folders else []
    fitting = ("pretrained", "checkpoints") if model in _FOLDERS else ("base_url",)
    for key in (one for one in given if one not in fitting):
        place = key if key == "checkpoints" else f"model_args.{key}"
        yield place, f"`{key}` has no effect with `model: {model}`, which takes {' or '.join(fitting)}"
    usable = [key for key in given if key in fitting]
    if len(usable) != 1:
        found = f"both {' and '.join(f'`{one}`' for one in usable)} are given" if usable else "none is given"
        names = " or ".join(one if one == "checkpoints" else f"model_args.{one}" for one in fitting)
        yield "model", f"exactly one source of the model is needed, {names}; {found}"
    elif model in _PATHS:
        yield from _endpoint_violations(model, values, args)


def _endpoint_violations(
    model: str, values: Mapping[str, Any], args: Mapping[str, Any]
) -> Iterator[Violation]:
    path, url = _PATHS[model], str(args["base_url"])
    if not re.fullmatch(rf"https?://[^/\s]+(/[^\s]*)?{path}", url):
        server = re.match(r"https?://[^/\s]+", url)
        hint = f"{server[0] if server else 'http://HOST:PORT'}{path}"
        yield "model_args.base_url", f"`{model}` needs the whole address of the requests; write {hint}"
    if not args.get("model"):
        what = "`model_args.model` is needed: the name under which the server serves the model"
        yield "model_args", what
    if str(values["batch_size"] or "").startswith("auto"):
        yield "batch_size", "`batch_size: auto` is not supported for a server: give a number"
    if model == CHAT:
        if not values["apply_chat_template"]:
            yield "model", f"`{CHAT}` sends messages: set `apply_chat_template: true`"
        if str(values["batch_size"] or "1") != "1":
            what = "a chat request holds one conversation: remove `batch_size`"
            yield "batch_size", f"{what}; `num_concurrent` in `model_args` sends several at once"
    elif not args.get("tokenizer") and not args.get("tokenizer_backend"):
        what = "`model_args.tokenizer` is needed: a folder with the tokenizer of the served model"
        yield "model_args", what


def checkpoint_violations(checkpoints: CheckpointChoice) -> Iterator[Violation]:
    """Yield the folders that are neither a model nor checkpoints, and the iterations that do not exist."""
    for folder in map(Path, checkpoints.folders):
        single = _single(folder)
        if not os.path.isdir(folder):
            yield "checkpoints", f"{folder}: no such folder"
        elif not single and not _has_checkpoints(folder):
            below = RunDir(folder).checkpoints
            hint = f"; it is a run directory, whose checkpoints are in {below}" if below.is_dir() else ""
            yield (
                "checkpoints",
                f"{folder}: neither a model folder (config.json) nor checkpoints (iter_*){hint}",
            )
        elif single and (checkpoints.iterations or checkpoints.all_iterations):
            yield "iterations", f"{folder} is a {single}, which has no iterations: remove the key"
        else:
            named = (iteration_of(one.name) for one in folder.glob("iter_*"))
            stored = sorted(one for one in named if one is not None)
            for one in checkpoints.iterations:
                if not os.path.isdir(folder / folder_of(one)):
                    found = f"; there are {', '.join(map(str, stored))}" if stored else ""
                    yield "iterations", f"{folder}: no checkpoint of iteration {one}{found}"
            if _holds_adapters(folder):
                yield (
                    "checkpoints",
                    f"{folder} holds adapters without their base: merge one into it (python tools/checkpoint/"
                    f"adapter.py merge --load {folder} --base BASE --save MERGED), and evaluate MERGED",
                )


def _holds_adapters(folder: Path) -> bool:
    """Return whether the newest checkpoint of a folder, or the one that it is, is that of adapters."""
    return trains_adapters(read_arguments(newest(folder) or folder) or {})


def _single(folder: Path) -> str:
    """Return what a folder is if it holds a single model; "" if it is a folder of checkpoints."""
    if is_huggingface(folder):
        return "model folder"
    is_checkpoint = iteration_of(folder.name) is not None or os.path.isfile(folder / ".metadata")
    return "checkpoint" if is_checkpoint else ""


def _has_checkpoints(folder: Path) -> bool:
    return os.path.isfile(folder / TRACKER) or any(folder.glob("iter_*"))
