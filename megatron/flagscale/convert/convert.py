"""Convert a model: detect the source's format, and stream its tensors into a target that appears complete."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, Self

import torch
import yaml

from flagscale.errors import Problem, UserError
from flagscale.files import write_atomic
from flagscale.run.checkpoints import RELEASE
from flagscale.run.rundir import RunDir
from megatron.flagscale.convert.assembled import Assembled
from megatron.flagscale.convert.checkpoints import is_checkpoint
from megatron.flagscale.convert.families.registry import load as load_family
from megatron.flagscale.convert.files import complete_folder
from megatron.flagscale.convert.hf_pictures import read_config, write_config
from megatron.flagscale.convert.huggingface import CONFIG, HuggingFaceSource
from megatron.flagscale.convert.huggingface_target import HuggingFaceTarget
from megatron.flagscale.convert.logits import verify_logits
from megatron.flagscale.convert.megatron_args import task_arguments
from megatron.flagscale.convert.merged import AdapterFolder, Merged
from megatron.flagscale.convert.model import Model
from megatron.flagscale.convert.processor import (
    as_trained,
    laid_out_singly,
    placeholder_ids,
    placeholders,
    write_processor,
)
from megatron.flagscale.convert.sources import TOKENIZER, open_huggingface, open_megatron
from megatron.flagscale.convert.tensors import Entry, Source, Target, entries
from megatron.flagscale.convert.tokenizer import (
    GENERATION,
    TOKENIZER_FILE,
    Tokenizer,
    open_tokenizer,
    with_tokens,
    write_file,
)
from megatron.flagscale.convert.torch_dist import TorchDistSource
from megatron.flagscale.convert.torch_dist_target import TorchDistTarget
from megatron.flagscale.convert.tower_folder import TowerFolder, Wanted
from megatron.flagscale.convert.upcycle import Upcycled, Upcycling
from megatron.flagscale.convert.weight_writer import SHARD_BYTES
from megatron.flagscale.convert.without_mtp import WithoutMtp
from megatron.flagscale.tokenizer import beside_model

HUGGINGFACE, MEGATRON = "huggingface", "megatron"
"""The names of the formats, as `--to` takes them."""

TASK = "model.yaml"
"""Stored with a converted checkpoint: the arguments of a training that starts from it."""


@dataclass(frozen=True)
class Converted:
    """The result of a conversion: `tensors` counts them as Megatron joins them, `bytes` is their size."""

    target: Path
    format: str
    model: Model
    tensors: int
    bytes: int
    notices: tuple[str, ...]


class Progress(Protocol):
    """A context manager that reports progress, as `tools.progress` does."""

    def __enter__(self) -> Self: ...
    def __exit__(self, failed: object, /, *rest: object) -> None: ...
    def advance(self, size: int, **counts: float) -> None: ...


def convert(
    load: Path | str,
    save: Path | str,
    *,
    to: str | None = None,
    family: str | None = None,
    dtype: str | None = None,
    tokenizer: Path | str | None = None,
    vocab_size: int | None = None,
    iteration: int | None = None,
    chat_template: str | None = None,
    shard_bytes: int | None = None,
    adapter: AdapterFolder | None = None,
    upcycling: Upcycling | None = None,
    tower: Wanted | None = None,
    without_mtp: bool = False,
    overwrite: bool = False,
    verify: bool = False,
    progress: Callable[[int], Progress] | None = None,
) -> Converted:
    """Write the model in the folder `load` to the new folder `save`, in the other format or in that of `to`.

    `dtype` (torch's name) casts every tensor; otherwise each keeps its precision. `tokenizer` is included
    with the model; default: the source's own. `vocab_size` is the true number of tokens if the source does
    not record it. `chat_template` is the template of conversations that is exported, a name or a file;
    default: the tokenizer's, or of a model with pictures that of its training. `verify` compares the logits
    of both sides. `shard_bytes` (default: 5 GB) limits the size of a safetensors file. `adapter` is merged
    into the weights. `tower` is put together with the language model to one that sees pictures.
    `without_mtp` leaves out the layers for multi-token prediction. `progress` is called with the total
    number of bytes once it is known.

    Raises:
        UserError: the source cannot be converted (lists all reasons); `save` exists; an option has no effect.
    """
    load, save = Path(load), Path(save)
    origin = format_of(load)
    to = to or (MEGATRON if origin == HUGGINGFACE else HUGGINGFACE)
    ineffective = {}
    if origin == HUGGINGFACE and vocab_size is not None:
        ineffective["--vocab-size"] = "has no effect on a Hugging Face folder, which records it"
    if origin == HUGGINGFACE and iteration is not None:
        ineffective["--iteration"] = "has no effect on a Hugging Face folder, which holds only one model"
    if chat_template is not None and (origin, to) != (MEGATRON, HUGGINGFACE):
        what = "only has an effect on the way from Megatron to Hugging Face"
        ineffective["--chat-template"] = what
    if to == MEGATRON and shard_bytes is not None:
        ineffective["--max-shard-size"] = "has no effect on a Megatron checkpoint, which has no shards"
    if verify and (upcycling or tower or origin == to):
        what = "can only compare a Hugging Face folder with a Megatron checkpoint, and not with --experts "
        what += "or --tower"
        ineffective["--verify-logits"] = what
    if ineffective:
        raise UserError(Problem(what, option, "leave it out") for option, what in ineffective.items())
    given = open_tokenizer(Path(tokenizer)) if tokenizer else None
    source: Source
    if origin == HUGGINGFACE:
        source, companion, notices = open_huggingface(load, family, given)
    else:
        options = (vocab_size, iteration, chat_template)
        source, companion, notices = open_megatron(load, family, given, *options)
    if verify and not isinstance(source, TorchDistSource | HuggingFaceSource):
        what = "cannot load a checkpoint in Megatron's `torch` format"
        hint = "convert it with `--to megatron` first, and the result with `--verify-logits`"
        raise UserError([Problem(what, "--verify-logits", hint)])
    if verify and isinstance(source, HuggingFaceSource) and source.is_scaled:
        what = "transformers does not compute 8-bit or 4-bit weights here"
        hint = "convert without it first, and the result with `--to huggingface --verify-logits`"
        raise UserError([Problem(what, "--verify-logits", hint)])
    opened = source
    if adapter:
        source = Merged(source, adapter.open(source))
    if without_mtp:
        source = WithoutMtp(source)
        notices += (source.notice,)
    if upcycling:
        source = Upcycled(source, upcycling)
    if tower:
        opened_tower = TowerFolder(tower)
        companion = with_tokens(companion, placeholders(opened_tower.vision))
        source = Assembled(source, opened_tower, companion.size or 0)
        if to == HUGGINGFACE and companion.folder:
            companion = as_trained(opened_tower.vision, companion, None, ends=False)
    special = placeholder_ids(source.model.vision, companion) if source.model.vision else {}
    model = replace(source.model, dtype=dtype) if dtype else source.model
    cast = getattr(torch, dtype) if dtype else None
    dtypes = {
        entry: source.dtype(entry) if entry.exact else cast or source.dtype(entry) for entry in entries(model)
    }
    total = sum(entry.elements * kind.itemsize for entry, kind in dtypes.items())
    with complete_folder(save, overwrite, load, *(one.folder for one in (adapter,) if one)) as folder:
        free = shutil.disk_usage(folder).free
        if free < total:
            raise UserError(f"{save}: {total / 1e9:.1f} GB are needed, but only {free / 1e9:.1f} GB are free")
        if to == HUGGINGFACE:
            _write_config(folder, model, companion, special)
            notices += _odd_tokenizer(companion, folder)
            target = HuggingFaceTarget(folder, model, dtypes, shard_bytes or SHARD_BYTES)
            _stream(source, dtypes, target, total, progress)
            said = (load_family(model.family).notice, laid_out_singly(model.vision))
            notices += tuple(filter(None, said))
        else:
            _write_task(folder, save, model, companion)
            _stream(source, dtypes, TorchDistTarget(folder, model), total, progress)
        if verify:
            rounded = any(
                torch.promote_types(source.dtype(one), kind) != kind for one, kind in dtypes.items()
            )
            rounding = "--dtype rounds the weights: compare without it"
            hint = rounding if rounded else load_family(model.family).caveat(model)
            notices += (_verify(opened, folder / RELEASE if to == MEGATRON else folder, to, model, hint),)
        notices += tuple(filter(None, (load_family(model.family).caveat(model),)))
    return Converted(save, to, model, len(dtypes), total, notices)


def _verify(source: Source, made: Path, to: str, model: Model, hint: str) -> str:
    assert isinstance(source, TorchDistSource | HuggingFaceSource)  # `convert` refuses others
    sides = (made, source.folder) if to == HUGGINGFACE else (source.folder, made)
    difference = verify_logits(*sides, model, hint)
    return f"logits of Megatron and transformers differ by {difference:.1e} relative to the largest value"


def format_of(folder: Path) -> str:
    """Return the format of a folder; raise `UserError` if it has neither."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if (folder / CONFIG).is_file():
        return HUGGINGFACE
    if is_checkpoint(folder):
        return MEGATRON
    what = f"{folder}: neither a Hugging Face folder ({CONFIG}) nor a Megatron checkpoint"
    below = RunDir(folder).checkpoints
    hint = f"it is a run directory, whose checkpoints are in {below}" if is_checkpoint(below) else ""
    raise UserError([Problem(what, hint=hint)])


def _stream(
    source: Source,
    dtypes: Mapping[Entry, torch.dtype],
    target: Target,
    total: int,
    progress: Callable[[int], Progress] | None,
) -> None:
    with closing(target), progress(total) if progress else nullcontext() as shown:
        for entry, dtype in dtypes.items():
            tensor = source.read(entry)
            assert tensor.shape == entry.shape
            target.write(entry, tensor.to(dtype))
            if shown:
                size = entry.elements * dtype.itemsize
                shown.advance(size, MB=size / 1e6)
        target.finish()


def _write_config(
    folder: Path, model: Model, companion: Tokenizer, placeholders: Mapping[str, int] | None = None
) -> None:
    companion.copy(folder)
    if model.vision:
        write_file(folder)
        write_processor(folder, model.vision)
    config = write_config(model, {**companion.ids, **(placeholders or {})})
    read_config(config, f"{CONFIG} of the family {model.family}", model.family)  # refuses what others misread
    write_atomic(folder / CONFIG, json.dumps(config, indent=2) + "\n")
    generation = {name: value for name, value in companion.generation.items() if value is not None}
    write_atomic(folder / GENERATION, json.dumps(generation, indent=2) + "\n")


def _odd_tokenizer(companion: Tokenizer, folder: Path) -> tuple[str, ...]:
    """Return a notice if the tokenizer gives other ids beside the model's `config.json` than alone."""
    if companion.folder is None or not (companion.folder / TOKENIZER_FILE).is_file():
        return ()
    what = beside_model(companion.folder, folder)
    return (what,) if what else ()


def _write_task(folder: Path, save: Path, model: Model, companion: Tokenizer) -> None:
    """Write the tokenizer, and the arguments for a training that starts from this checkpoint."""
    companion.copy(folder / TOKENIZER)
    if model.vision:
        write_file(folder / TOKENIZER)
    if companion.generation:
        (folder / TOKENIZER).mkdir(exist_ok=True)
        write_atomic(folder / TOKENIZER / GENERATION, json.dumps(dict(companion.generation), indent=2) + "\n")
    arguments = task_arguments(model)
    if companion.folder is not None:
        arguments["tokenizer_type"] = "HuggingFaceTokenizer"
        arguments["tokenizer_model"] = str(save.resolve() / TOKENIZER)
    write_atomic(folder / TASK, yaml.safe_dump(arguments, sort_keys=False))
