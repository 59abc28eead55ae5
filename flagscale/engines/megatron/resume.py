"""The checkpoint that a training resumes from, if this host sees it, against the configuration."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from flagscale.checks.adapter_folder import CONFIG as ADAPTER
from flagscale.checks.blend import content
from flagscale.checks.degrees import degrees, model_size
from flagscale.checks.loading import RANKS
from flagscale.checks.lora import BASE, PRETRAINED, trains_adapters
from flagscale.checks.model_folder import read_config
from flagscale.checks.pretrained import CONFIG, CONVERTED, is_huggingface
from flagscale.checks.recorded import CONTENT, TOKENIZER, WITH_OPTIM
from flagscale.checks.resume import Saved, resume_notices, resume_violations, starts_over
from flagscale.checks.vocabulary import tokenizer_of
from flagscale.checks.weight_files import weights_of
from flagscale.engines.megatron.huggingface import arguments_of
from flagscale.errors import UserError, Violation
from flagscale.files import not_a_folder
from flagscale.run.base import base_folder, identity
from flagscale.run.checkpoints import RELEASE, TRACKER, folder_of, newest, read_arguments, tracked

_ABSENT = "no such folder"


def violations(values: Mapping[str, Any], world_size: int) -> Iterator[Violation]:
    """Yield each argument (by dest) that may not differ from the run that saved the checkpoint."""
    yield from _missing(values)
    base, now = values.get(PRETRAINED), _now(values, world_size)
    try:
        if folder := _huggingface(values):
            arguments_of(folder)
            yield from _conversion_violations(folder, values)
        elif trains_adapters(values) and base and tracked(Path(base)):
            now[BASE] = identity(base_folder(Path(base)))
    except UserError as error:
        yield from ((PRETRAINED, str(problem)) for problem in error.problems)
        return
    for saved in _saved(values):
        yield from resume_violations(saved, now)


def notices(values: Mapping[str, Any], world_size: int) -> Iterator[Violation]:
    """Yield each argument (by dest) whose change is allowed, but changes the training."""
    for saved in _saved(values):
        yield from resume_notices(saved, _now(values, world_size))


def _missing(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield that the weights to start from are not there, unless the run has all weights of its own."""
    named, load = values.get(PRETRAINED), values.get("load")
    name = "load" if starts_over(values) else PRETRAINED
    folders = [folder for folder in (named, None if trains_adapters(values) else load) if folder]
    is_there = any(os.path.isfile(Path(folder) / TRACKER) for folder in folders)
    if not values.get(name) or is_there or _huggingface(values):
        return
    why = f"`{WITH_OPTIM}` needs a checkpoint: " if name == "load" else ""
    found = _instead_of_checkpoints(Path(values[name]))
    either = "; give a model folder in Hugging Face's format or a folder of checkpoints"
    yield name, f"{why}{values[name]}: {found}{either if found == _ABSENT and not why else ''}"


def _instead_of_checkpoints(path: Path) -> str:
    """Return what a path is that should be a folder of checkpoints, and which path may have been meant."""
    if not os.path.isdir(path):
        return "not a folder" if os.path.lexists(path) else _ABSENT
    if os.path.isfile(path / ADAPTER):
        what = f"an adapter in PEFT's format ({ADAPTER}), not a model: name its base"
        return f"{what}, or merge both into a model (tools/checkpoint/adapter.py merge)"
    near = [one for one in (path.parent, path / "checkpoints") if os.path.isfile(one / TRACKER)]
    meant = f"; did you mean {near[0]}?" if near else ""
    return f"no {TRACKER} in this folder: not a folder of checkpoints{meant}"


def _conversion_violations(folder: Path, values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield why a Hugging Face folder cannot be converted: its weights, or the place of the result."""
    if values.get("load") and tracked(Path(values["load"])) and not trains_adapters(values):
        return  # the run continues from its own checkpoint
    yield from ((PRETRAINED, what) for what in weights_of(folder, read_config(folder))[1])
    if values.get(CONVERTED) and (wrong := not_a_folder(Path(values[CONVERTED]))):
        yield CONVERTED, f"{wrong}: not a folder; `{CONVERTED}` names a folder, which is made if needed"


def _huggingface(values: Mapping[str, Any]) -> Path | None:
    """Return the Hugging Face folder from which the training starts; None if it starts from another one."""
    folder = values.get(PRETRAINED)
    return Path(folder) if folder and is_huggingface(folder) else None


def restart_notices(values: Mapping[str, Any], max_restarts: int) -> Iterator[Violation]:
    """Yield the argument (by dest) with which a restart loses what the run has trained."""
    name = "finetune" if values.get("finetune") else WITH_OPTIM
    if max_restarts and (name == "finetune" or starts_over(values)):
        what = "every restart (experiment.runner.max_restarts) begins again at iteration 0"
        without = ", without this key," if name == "finetune" else ""
        yield name, f"{what}; `pretrained_checkpoint` instead of `load`{without} continues"


def _saved(values: Mapping[str, Any]) -> Iterator[Saved]:
    """Yield the record of the checkpoint that is loaded, and in a training of adapters that of their base.

    There may be none here: the worker, too, compares.
    """
    step, huggingface = values.get("ckpt_step"), _huggingface(values)
    for name in ("load", PRETRAINED):
        if directory := values.get(name):
            has_step = name == "load" and step is not None
            folder = Path(directory) / folder_of(int(step or 0)) if has_step else newest(Path(directory))
            if folder:
                stored = read_arguments(folder)
                resumes = name == "load" and folder.name != RELEASE and not starts_over(values)
                is_base = name == PRETRAINED and trains_adapters(values)
                if stored:
                    yield Saved(f"the checkpoint {folder}", stored, resumes, is_base)
                if not trains_adapters(values):
                    return
    if huggingface:
        is_base = trains_adapters(values)
        yield Saved(str(huggingface / CONFIG), arguments_of(huggingface), False, is_base, is_huggingface=True)


def _now(values: Mapping[str, Any], world_size: int) -> dict[str, Any]:
    """Return what a record of this run would hold; the batch is the engine's default if none is given."""
    batch, ranks = values.get("global_batch_size"), None
    if model_size(values) > 0:
        ranks = degrees(values, world_size).dp
        batch = batch or (values.get("micro_batch_size") and values["micro_batch_size"] * ranks)
    known = {CONTENT: content(values, only_train=True), TOKENIZER: "", RANKS: ranks}
    with suppress(UserError):  # reported with the tokenizer
        known[TOKENIZER] = tokenizer_of(values)
    return {**values, "global_batch_size": batch, **known}
