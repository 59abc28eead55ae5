"""A Megatron checkpoint in the older `torch` format as a source: one file per rank of the model.

The files are named `mp_rank_TT[_PPP][_EEE]/model_optim_rng.pt`, by the rank's number in the tensor, pipeline
and expert parallel groups. A tensor is read from the disk when it is requested; the optimizer's state is not.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch

from flagscale.errors import Problem, UserError
from flagscale.run.manifest import RANK_FILE
from megatron.flagscale.checkpoint.torch_format import EXTRA_STATE, read_rank, saved_arguments
from megatron.flagscale.convert.megatron_names import Place, place_of, views
from megatron.flagscale.convert.model import Model
from megatron.flagscale.convert.tensors import EMBEDDING, OUTPUT, Entry, entries

_GATED = re.compile(r"(?!pictures\.).*\.linear_fc1\.")
"""The tensors that are gated in a gated model; neither towers nor projectors are."""
_FOLDER = re.compile(r"mp_rank_(\d{2,})((?:_\d{3,})*)")


def read_arguments(checkpoint: Path) -> dict[str, Any]:
    """Return the arguments of the training that saved a checkpoint, by the names that the engine uses now."""
    args = saved_arguments(checkpoint)
    if args.get("apply_layernorm_rms"):  # FlagScale before Megatron had `normalization`
        args["normalization"] = "RMSNorm"
    return args


def stored_rows(checkpoint: Path) -> int:
    """Return the number of stored rows of the embedding: tokens and padding."""
    layout = _Layout.of(checkpoint, read_arguments(checkpoint))
    file = next(file for rank, file in layout.files.items() if rank.pipeline == 0)
    for chunk in _chunks(file):
        if EMBEDDING in chunk:
            rows: int = chunk[EMBEDDING].shape[0] * layout.tensor
            return rows
    raise UserError(f"{file}: no embedding found, so this is not a Megatron GPT model")


@dataclass(frozen=True, order=True)
class _Rank:
    tensor: int
    pipeline: int
    expert: int


@dataclass(frozen=True)
class _Layout:
    """The sizes of the groups of a checkpoint, and the file of each rank that saved one."""

    tensor: int
    pipeline: int
    expert: int
    splits_experts: bool
    """Whether the weights of each expert are split over the tensor parallel ranks."""
    files: Mapping[_Rank, Path]

    @classmethod
    def of(cls, checkpoint: Path, args: Mapping[str, Any]) -> _Layout:
        """Raises `UserError` if ranks are missing, or if experts are split in a way that the names hide."""
        if args.get("hetero_process_meshes") or args.get("hetero_layout"):
            raise UserError(f"{checkpoint}: saved by unequal meshes in Megatron's `torch` format: {_RESUME}")
        tensor, pipeline, expert = (
            args.get(f"{kind}_model_parallel_size") or 1 for kind in ("tensor", "pipeline", "expert")
        )
        within = args.get("expert_tensor_parallel_size") or tensor
        if args.get("num_experts") and within not in (1, tensor):
            what = f"expert_tensor_parallel_size {within} with tensor_model_parallel_size {tensor}"
            raise UserError(f"{checkpoint}: {what} in Megatron's `torch` format: {_RESUME}")
        found = {}
        for file in sorted(checkpoint.glob(f"mp_rank_*/{RANK_FILE}")):
            match = _FOLDER.fullmatch(file.parent.name)
            numbers = [int(number) for number in match[2].split("_")[1:]] if match else []
            if match is None or len(numbers) != (pipeline > 1) + (expert > 1):
                sizes = f"TP{tensor} PP{pipeline} EP{expert}"
                raise UserError(
                    f"{file.parent}: not a name of a rank of {sizes}, the layout in its arguments"
                )
            stage = numbers.pop(0) if pipeline > 1 else 0
            found[_Rank(int(match[1]), stage, numbers.pop() if numbers else 0)] = file
        layout = cls(tensor, pipeline, expert, within == tensor, found)
        if missing := [layout.folder(rank) for rank in layout.missing()]:
            raise UserError(f"{checkpoint}: {len(missing)} ranks are missing: {', '.join(missing[:3])}")
        return layout

    def missing(self) -> Iterator[_Rank]:
        """Yield the ranks without a file whose tensors no other file holds."""
        dense = {(rank.tensor, rank.pipeline) for rank in self.files}
        experts = {(rank.pipeline, rank.expert) for rank in self.files}
        for rank in (_Rank(*one) for one in product(*map(range, (self.tensor, self.pipeline, self.expert)))):
            is_covered = (rank.tensor, rank.pipeline) in dense and (rank.pipeline, rank.expert) in experts
            if rank not in self.files and (self.splits_experts or not is_covered):
                yield rank

    def folder(self, rank: _Rank) -> str:
        """Return the name of a rank's folder."""
        stage = f"_{rank.pipeline:03d}" if self.pipeline > 1 else ""
        expert = f"_{rank.expert:03d}" if self.expert > 1 else ""
        return f"mp_rank_{rank.tensor:02d}{stage}{expert}"


_RESUME = (
    "this cannot be read; resume it once with `ckpt_format: torch_dist`, in the layout that saved it, "
    "and convert what that run saves"
)


def open_source(checkpoint: Path, model: Model) -> TorchRanksSource:
    """Return a checkpoint as a source; raises `UserError` if it does not hold the model."""
    return TorchRanksSource(checkpoint, model)


class TorchRanksSource:
    """A checkpoint whose tensors match its model in names, number and shapes.

    Rows that pad the vocabulary are left out.
    """

    def __init__(self, checkpoint: Path, model: Model) -> None:
        self.folder, self.model = checkpoint, model
        args = read_arguments(checkpoint)
        self._layout = _Layout.of(checkpoint, args)
        self._is_gated = bool(args.get("swiglu") or args.get("quick_geglu"))
        self._parts: dict[Place, dict[int, torch.Tensor]] = defaultdict(dict)
        self._collect()
        if problems := [Problem(what, str(checkpoint)) for what in self._differences()]:
            raise UserError(problems)

    def dtype(self, entry: Entry) -> torch.dtype:
        """Return the precision of a tensor as stored."""
        return self._parts[_place(entry)][0].dtype

    def read(self, entry: Entry) -> torch.Tensor:
        """Return the tensor of an entry of `entries(self.model)`, joined from the tensor parallel ranks."""
        parts = [part for _, part in sorted(self._parts[_place(entry)].items())]
        axis = _split_axis(parts[0], entry)
        if axis is None or len(parts) == 1:
            whole = parts[0]
        elif axis == 0 and self._is_gated and _GATED.match(entry.megatron):
            # Each rank has its rows of the gate, followed by those of the up projection.
            whole = torch.cat(
                [half for halves in zip(*(part.chunk(2) for part in parts), strict=True) for half in halves]
            )
        else:
            whole = torch.cat(parts, dim=axis)
        return whole[: entry.shape[0]].clone(memory_format=torch.contiguous_format)

    def _collect(self) -> None:
        """Record the parts of each tensor: by tensor parallel rank, with numbers of layers and experts."""
        chunks = {rank: _chunks(file) for rank, file in self._layout.files.items()}
        first = {rank.pipeline: of for rank, of in sorted(chunks.items(), reverse=True)}
        before, layers = {}, 0
        # A stage with several chunks holds one of each round over all stages.
        for number, stage in product(range(len(first[0])), range(self._layout.pipeline)):
            before[stage, number] = layers
            layers += _layers(first[stage][number])
        if layers != self.model.layers:
            what = f"{layers} layers, but num_layers is {self.model.layers}"
            raise UserError(f"{self.folder}: its ranks hold {what}")
        local = self.model.experts // self._layout.expert
        for rank, held in sorted(chunks.items()):
            for number, chunk in enumerate(held):
                for name, tensor in views(chunk, local):
                    place = place_of(name, before[rank.pipeline, number], rank.expert * local)
                    is_whole = place.expert is not None and not self._layout.splits_experts
                    self._parts[place].setdefault(0 if is_whole else rank.tensor, tensor)

    def _differences(self) -> Iterator[str]:
        expected = {_place(entry): entry for entry in entries(self.model)}
        known = {*expected, *((Place(OUTPUT),) if self.model.tied else ())}
        if missing := [str(place) for place in expected if place not in self._parts]:
            yield f"{len(missing)} tensors are missing: {', '.join(missing[:3])}"
        if extra := [str(place) for place in self._parts if place not in known]:
            family = self.model.family
            yield f"{len(extra)} tensors do not belong to the family {family}: {', '.join(extra[:3])}"
        for place, entry in expected.items():
            if place in self._parts and not self._fits(self._parts[place], entry):
                shape = list(self._parts[place][0].shape)
                what = f"has shape {shape} on {len(self._parts[place])} tensor parallel ranks"
                yield f"{place} {what}, but the checkpoint's arguments give {list(entry.shape)}"

    def _fits(self, parts: Mapping[int, torch.Tensor], entry: Entry) -> bool:
        whole, axis = list(parts[0].shape), _split_axis(parts[0], entry)
        if axis is not None:
            whole[axis] *= len(parts)
        is_padded = entry.has_vocabulary and whole[0] > entry.shape[0]
        return whole[is_padded:] == list(entry.shape[is_padded:])


def _place(entry: Entry) -> Place:
    return place_of(entry.megatron, 0, 0)._replace(expert=entry.expert)


def _split_axis(part: torch.Tensor, entry: Entry) -> int | None:
    """Return the axis along which the ranks hold parts of a tensor, or None if each holds all of it."""
    pairs = enumerate(zip(part.shape, entry.shape, strict=False))
    return next((axis for axis, (size, whole) in pairs if size != whole), None)


def _chunks(file: Path) -> list[dict[str, torch.Tensor]]:
    """Return the tensors of a rank's file, for each of its chunks of layers."""
    content = read_rank(file)
    names = (
        ["model"]
        if "model" in content
        else sorted(
            (name for name in content if re.fullmatch(r"model\d+", name)), key=lambda name: int(name[5:])
        )
    )
    if not names:
        raise UserError(f"{file}: it holds no model")
    if "language_model" in content[names[0]]:
        raise UserError(
            f"{file}: a model of Megatron's classes before Megatron-core (`use_mcore_models: false`); "
            "convert it to Megatron-core with the Megatron that saved it"
        )
    return [
        {
            name: value
            for name, value in content[key].items()
            if isinstance(value, torch.Tensor) and not name.endswith(EXTRA_STATE)
        }
        for key in names
    ]


def _layers(chunk: Mapping[str, torch.Tensor]) -> int:
    numbers = [int(match[1]) for name in chunk if (match := re.match(r"decoder\.layers\.(\d+)\.", name))]
    return max(numbers, default=-1) + 1
