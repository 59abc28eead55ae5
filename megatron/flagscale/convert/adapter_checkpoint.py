"""The checkpoint of a training of an adapter (`torch_dist`): read, and written as the start of a training."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from flagscale.checks.lora import BASE
from flagscale.errors import Problem, UserError
from flagscale.run.base import identity
from flagscale.run.checkpoints import read_arguments as recorded_arguments
from flagscale.run.manifest import is_torch_format
from megatron.flagscale.convert.adapters import Adapter, Lora, Projection, settings_problems
from megatron.flagscale.convert.checkpoints import find_checkpoint, is_checkpoint
from megatron.flagscale.convert.megatron_model import model_of
from megatron.flagscale.convert.model import Model
from megatron.flagscale.convert.torch_dist_reader import StoredTensors, read_arguments
from megatron.flagscale.convert.torch_dist_writer import TorchDistWriter


def names(projection: Projection) -> tuple[str, str]:
    """Return the names of A and B in a checkpoint."""
    return f"{projection.megatron}.a.weight", f"{projection.megatron}.b.weight"


def open_checkpoint(
    folder: Path, model: Model | None = None, iteration: int | None = None, base: Path | None = None
) -> Adapter:
    """Return the adapter in a folder of checkpoints; its base is `model`, or what its training recorded.

    `base` is the checkpoint of the base, which must be the one that it was trained on.

    Raises:
        UserError: there is no usable adapter, or it does not belong to the model; lists all reasons.
    """
    checkpoint = find_checkpoint(folder, iteration)
    args = read_arguments(checkpoint)
    if args.get("lora_rank") is None:
        hint = "convert a whole model with tools/checkpoint/convert.py"
        raise UserError([Problem("not a checkpoint of an adapter (no `lora_rank`)", str(checkpoint), hint)])
    rank, alpha = args["lora_rank"], args.get("lora_alpha")
    settings = (rank, rank if alpha is None else alpha, args.get("lora_dropout") or 0.0)
    wrong = [Problem(what, str(checkpoint)) for what in settings_problems(*settings)]
    stored = StoredTensors(checkpoint)
    wrong += [Problem(what, str(checkpoint)) for what in stored.cut_files()]
    trained_on = {**args, **(recorded_arguments(checkpoint) or {})}.get(BASE)
    if base and trained_on and not is_torch_format(base) and trained_on != identity(base):
        what = f"it was trained on another base than {base}"
        hint = f"its training loaded {args.get('pretrained_checkpoint')}"
        wrong.append(Problem(what, str(checkpoint), hint))
    if wrong:
        raise UserError(wrong)
    if model is None:
        # Its embedding is not stored; the vocabulary has no part in the projections.
        rows = args.get("vocab_size") or args.get("padded_vocab_size") or 1
        model = model_of(args, rows, str(checkpoint))
    lora = Lora(*settings)
    adapter = Adapter(checkpoint, lora, model, names, stored.shapes(), stored.whole)
    check_gaps(adapter, str(checkpoint))
    return adapter


def check_gaps(adapter: Adapter, where: str) -> None:
    """Raise `UserError` if an adapter changes a projection only in some layers: training changes all."""
    if gaps := [*adapter.gaps()]:
        raise UserError(Problem(what, where) for what in gaps)


def write_checkpoint(folder: Path, adapter: Adapter, arguments: Mapping[str, Any], base: Path) -> int:
    """Write an adapter as a checkpoint without an iteration; return the number of bytes of its tensors.

    `arguments` are those that a checkpoint of the base holds, `base` is its folder. If it holds checkpoints,
    their weights are identified, so that a training refuses another base.
    """
    lora, total = adapter.lora, 0
    own: dict[str, Any] = {
        "lora_rank": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "lora_targets": [*adapter.kinds],
        "pretrained_checkpoint": str(base),
    }
    if is_checkpoint(base):
        own[BASE] = identity(find_checkpoint(base))
    with closing(TorchDistWriter(folder)) as writer:
        for projection in adapter.projections:
            for name, tensor in zip(names(projection), adapter.read(projection), strict=True):
                writer.write(name, tensor)
                total += tensor.nbytes
        writer.finish({**arguments, **own})
    return total
