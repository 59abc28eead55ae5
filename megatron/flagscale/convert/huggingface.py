"""A Hugging Face folder as a source: `config.json` and safetensors, one tensor at a time."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from flagscale.checks.stored_tensors import Stored
from flagscale.checks.weight_files import weights_of
from flagscale.errors import Problem, UserError
from megatron.flagscale.convert import block_scales, mxfp4
from megatron.flagscale.convert.families import registry
from megatron.flagscale.convert.families.llava import class_of, form_in, ignored, rows_of, usual_name
from megatron.flagscale.convert.files import read_json
from megatron.flagscale.convert.hf_pictures import read_config, text_of, unread_layers
from megatron.flagscale.convert.model import Model
from megatron.flagscale.convert.tensors import EMBEDDING, OUTPUT, Entry, entries

CONFIG = "config.json"
NAMES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
CODES = {dtype: name for name, dtype in NAMES.items()}
"""torch's precisions, with their names in safetensors."""
_OF_SHAPES = (
    *("layers", "hidden", "heads", "groups", "head_dim", "ffn", "vocab"),
    *("experts", "shared", "dense", "dense_ffn"),
)
"""Fields of `Model` on which the shapes of tensors depend."""
_SHOWN = 3
"""Tensors that a message names at most."""


class HuggingFaceSource:
    """A folder whose tensors match its `config.json` in names, number and shapes.

    `notices` tell how a folder was read whose `config.json` says otherwise.

    Raises:
        UserError: the tensors do not match; lists all differences.
    """

    def __init__(self, folder: Path, family: str | None = None) -> None:
        self.folder = folder
        config = read_json(folder / CONFIG)
        self.model: Model = read_config(config, str(folder / CONFIG), family)
        stored = _stored_tensors(folder, config, class_of(self.model))
        self._names = _usual_names(stored, folder) if self.model.vision else {name: name for name in stored}
        self._stored = {usual: stored[name] for usual, name in self._names.items()}
        unread = tuple(unread_layers(config, self.model))
        self._unread = {name for name in self._stored if name.startswith(unread)}
        self._block = block_scales.block_of(config.get(block_scales.KEY))
        self._scales: dict[str, Stored] = {}
        if self._block:
            self._scales = {
                name: self._stored.pop(name + block_scales.SCALES)
                for name in [*self._stored]
                if name + block_scales.SCALES in self._stored
            }
        self._packed: dict[str, mxfp4.Packed] = {}
        if mxfp4.is_packed(config.get(block_scales.KEY)):
            self._packed = mxfp4.packed_in(self._stored)
            self._stored = mxfp4.unpacked_tensors(self._stored, self._packed)
        self.notices: tuple[str, ...] = ()
        if unread:
            last = "its last layer" if len(unread) == 1 else f"its last {len(unread)} layers"
            why = f"which the model does not read (`vision_feature_layer` in {CONFIG})"
            self.notices += (f"the tower is converted without {last}, {why}",)
        output, embedding = _tied_names(self.model)
        is_tied = self.model.tied
        if is_tied and {output, embedding} <= self._stored.keys():
            self.model = replace(self.model, tied=False)  # both are checked, and compared below
        if self.model.mtp and not any(name in self._stored for name in names_of_mtp(self.model)):
            what = f"{CONFIG} names {self.model.mtp} layers for multi-token prediction, which are not stored"
            self.notices += (f"{what}: the model is converted without them, as transformers reads it",)
            self.model = replace(self.model, mtp=0)
        problems = list(_differences(self.model, self._as_read(), _assumed(self.model, config)))
        problems += self._wrong_scales()
        problems += map(Problem, mxfp4.wrong(self._packed))
        problems = problems or list(self._unequal_copies())
        if problems:
            raise UserError([Problem(problem.what, str(folder), problem.hint) for problem in problems])
        if is_tied and not self.model.tied:
            if torch.equal(self._tensor(output), self._tensor(embedding)):
                self.model = replace(self.model, tied=True)
            else:
                what = f"{output} differs from the embedding to which {CONFIG} ties it"
                how = "the model is converted as not tied, as transformers and vLLM read it"
                self.notices = (f"{what}: {how}", *self.notices)
        if config.get("dtype") is None and config.get("torch_dtype") is None:
            dtype = str(self.dtype(next(entries(self.model)))).removeprefix("torch.")
            self.model = replace(self.model, dtype=dtype)  # as transformers and vLLM do

    @property
    def is_scaled(self) -> bool:
        """Whether weights are stored as 8-bit or 4-bit floats with scales."""
        return bool(self._scales or self._packed)

    def _as_read(self) -> dict[str, Stored]:
        """Return what is stored, with the precision that weights have once their scales are applied."""
        as_read = {name: self._stored[name]._replace(dtype=CODES[torch.bfloat16]) for name in self._scales}
        return {name: one for name, one in {**self._stored, **as_read}.items() if name not in self._unread}

    def _wrong_scales(self) -> Iterator[Problem]:
        for name, scales in self._scales.items():
            stored = self._stored[name]
            found = f"{name} is stored as {stored.dtype} {list(stored.shape)}, with scales {scales.dtype} "
            found += f"{list(scales.shape)}"
            if len(stored.shape) != 2:
                yield Problem(f"{found}; only matrices have scales")
                continue
            shape = block_scales.scales_shape(stored.shape, self._block or (1, 1))
            if (stored.dtype, scales.shape) != (block_scales.STORED, shape) or scales.dtype not in NAMES:
                codes = " or ".join(NAMES)
                expected = f"{block_scales.STORED} with scales of shape {list(shape)} in {codes}"
                yield Problem(f"{found}; expected: {expected}")

    def _unequal_copies(self) -> Iterator[Problem]:
        for entry in entries(self.model):
            for copy in entry.copies:
                if copy in self._stored and not torch.equal(
                    self._tensor(copy), self._tensor(entry.huggingface[0])
                ):
                    what = f"{copy} differs from {entry.huggingface[0]}; Megatron has one tensor for both"
                    yield Problem(what)

    def dtype(self, entry: Entry) -> torch.dtype:
        """Return the precision of a tensor: the one that holds all values of its parts as stored."""
        return reduce(torch.promote_types, map(self._dtype, entry.huggingface))

    def read(self, entry: Entry) -> torch.Tensor:
        """Return the tensor of an entry of `entries(self.model)`, joined into Megatron's form."""
        expert = entry.expert if entry.stacked else None
        return entry.join.join([self._tensor(name, expert) for name in entry.huggingface], self.model)

    def _dtype(self, name: str) -> torch.dtype:
        return torch.bfloat16 if name in self._scales else NAMES[self._stored[name].dtype]

    def _tensor(self, name: str, expert: int | None = None) -> torch.Tensor:
        if name in self._packed:
            packed = self._packed[name]
            assert expert is not None
            blocks = read_tensor(packed.blocks.file, name + mxfp4.BLOCKS, expert)
            return mxfp4.unpacked(blocks, read_tensor(packed.scales.file, name + mxfp4.SCALES, expert))
        tensor = read_tensor(self._stored[name].file, self._names[name], expert)
        if name not in self._scales:
            return tensor
        assert self._block
        scales = read_tensor(self._scales[name].file, self._names[name + block_scales.SCALES])
        return block_scales.scaled(tensor, scales, self._block)


def read_tensor(path: Path, name: str, at: int | None = None) -> torch.Tensor:
    """Return a tensor of a safetensors file, or the part of it at an index of its first axis."""
    # Reopened for each tensor: pages of a file that stays open would count as memory of this process.
    with safe_open(path, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name) if at is None else file.get_slice(name)[at]
        return tensor


def _stored_tensors(folder: Path, config: Mapping[str, Any], class_name: str) -> dict[str, Stored]:
    stored, problems = weights_of(folder, config)
    if not stored and not problems:
        again = (
            f'transformers.{class_name}.from_pretrained(FOLDER, dtype="auto").save_pretrained(OTHER_FOLDER)'
        )
        raise UserError(
            [Problem("its weights are not in safetensors", str(folder), f"save it again: {again}")]
        )
    if problems:
        raise UserError(Problem(what) for what in problems)
    return stored


def _usual_names(stored: Iterable[str], folder: Path) -> dict[str, str]:
    """Return the name of each stored tensor, by the one that it usually has in a model with pictures."""
    names: dict[str, str] = {}
    for name in stored:
        other = names.setdefault(usual_name(name), name)
        if other != name:
            raise UserError(f"{folder}: {other} and {name} are the same tensor; remove one of them")
    return names


def names_of_mtp(model: Model) -> set[str]:
    """Return the names of the tensors that belong to a model's layers for multi-token prediction."""
    names: list[set[str]] = []
    for one in (model, replace(model, mtp=0)):
        names.append({name for entry in entries(one) for name in (*entry.huggingface, *entry.copies)})
    return names[0] - names[1]


def _tied_names(model: Model) -> tuple[str, str]:
    """Return the names of the output and the embedding, whether or not the output is stored."""
    rows = {row.megatron: row.huggingface[0] for row in rows_of(model)}
    return rows[OUTPUT], rows[EMBEDDING]


def _assumed(model: Model, config: Mapping[str, Any]) -> str:
    """Return the sizes that `config.json` lacks, and the values that count for them; "" if it lacks none."""
    keys = registry.load(model.family).keys
    form = form_in(config)
    config = text_of(config, form) if form else config
    missing = [field for field in _OF_SHAPES if field in keys and config.get(keys[field]) is None]
    shown = ", ".join(f"`{keys[field]}` {getattr(model, field)}" for field in missing)
    return f"{CONFIG} does not give these sizes, which have a default: {shown}" if shown else ""


def _differences(model: Model, stored: Mapping[str, Stored], assumed: str) -> Iterator[Problem]:
    expected = {
        name: shape
        for entry in entries(model)
        for name, shape in zip(entry.huggingface, entry.stored_shapes, strict=True)
    }
    copies = {name: entry.shape for entry in entries(model) for name in entry.copies}
    buffers, (output, _) = ignored(model), _tied_names(model)
    optional = {name for name in stored if name.endswith(buffers) or (model.tied and name == output)}
    expected |= {name: shape for name, shape in copies.items() if name in stored}
    missing = [name for name in expected if name not in stored]
    extra = [name for name in stored if name not in expected and name not in optional]
    if missing:
        yield Problem(f"{len(missing)} of {len(expected)} tensors are missing: {_some(missing)}")
    if extra:
        yield Problem(f"{len(extra)} tensors do not belong to the family {model.family}: {_some(extra)}")
    known = {name: one for name, one in stored.items() if name in expected}
    # The layers have the same shapes.
    wrong: dict[tuple[str, tuple[int, ...], tuple[int, ...]], list[str]] = defaultdict(list)
    for name, one in known.items():
        if one.shape != expected[name]:
            wrong[re.sub(r"\d+", "N", name), one.shape, expected[name]].append(name)
    for number, ((_, found, shape), names) in enumerate([*wrong.items()][:_SHOWN]):
        others = f" (and {len(names) - 1} like it)" if len(names) > 1 else ""
        what = f"{names[0]}{others} has shape {list(found)}, but {CONFIG} gives {list(shape)}"
        yield Problem(what, hint="" if number else assumed)
    if more := sum(map(len, [*wrong.values()][_SHOWN:])):
        yield Problem(f"{more} more tensors have shapes that differ from {CONFIG}")
    codes = {one.dtype for one in known.values()} - NAMES.keys()
    for code in sorted(codes):
        names = [name for name, one in known.items() if one.dtype == code]
        yield Problem(f"{_some(names)}: stored as {code}; only {', '.join(NAMES)} are supported")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
