"""Megatron's `torch` format: a file per rank, which only the layout that saved it can load.

The engine does not check that. With other sizes it prints that it could not load the file and ends with exit
code 0, or keeps the initial values of the tensors that it does not find.
"""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flagscale.errors import UserError
from flagscale.run.checkpoints import TRACKER, tracked
from flagscale.run.manifest import RANK_FILE
from megatron.flagscale.checkpoint import safe_unpickle

TORCH, TORCH_DIST = "torch", "torch_dist"
"""Values of `ckpt_format`."""
_LAYOUT = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "virtual_pipeline_model_parallel_size",
    "expert_model_parallel_size",
    "expert_tensor_parallel_size",
    "decoder_first_pipeline_num_layers",
    "decoder_last_pipeline_num_layers",
    "pipeline_model_parallel_layout",
)
EXTRA_STATE = "_extra_state"
"""The end of names that hold no weights: the state that TransformerEngine keeps for fp8."""


def read_rank(file: Path) -> dict[str, Any]:
    """Return what a rank saved, without running any code in it; raise `UserError` if it cannot be read."""
    try:
        content: dict[str, Any] = safe_unpickle.load_file(file)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise UserError(f"{file}: cannot be read: {error}") from error
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        # What unpickling raises for changed bytes, besides its own error.
        raise UserError(f"{file}: cannot be read: damaged ({error!r})") from error
    if not isinstance(content, dict) or not isinstance(content.get("args"), argparse.Namespace):
        raise UserError(
            f"{file}: not a file of a checkpoint in Megatron's `{TORCH}` format: it has no `args`"
        )
    return content


def first_file(folder: Path) -> Path:
    """Return the file of the first rank of a checkpoint in the `torch` format."""
    return min(folder.glob(f"mp_rank_*/{RANK_FILE}"))


def saved_arguments(folder: Path) -> dict[str, Any]:
    """Return the arguments of the training that saved a checkpoint in the `torch` format."""
    return dict(vars(read_rank(first_file(folder))["args"]))


def check_layout(folder: Path, saved: dict[str, Any], args: Any, *, needs_optimizer: bool) -> None:
    """Raise `UserError` if a run (`args`) cannot load a checkpoint in the `torch` format saved with `saved`.

    `needs_optimizer`: whether it also loads the optimizer's state, unless `args` or `saved` rule that out.
    """
    compared = [name for name in _LAYOUT if name in saved and (args.num_experts or "expert" not in name)]
    differences = [
        f"{name} {_shown(saved[name])} (this run: {_shown(getattr(args, name))})"
        for name in compared
        if _shown(saved[name]) != _shown(getattr(args, name))
    ]
    if getattr(args, "hetero_layout", None):
        differences.append("equal meshes (this run: `hetero_process_meshes`)")
    what = f"{folder} is in Megatron's `{TORCH}` format"
    if differences:
        raise UserError(
            f"{what}, which only the layout that saved it can load: {', '.join(differences)}. Restore the "
            f"layout, or run it once with `ckpt_format: {TORCH_DIST}` until it saves: "
            "every layout can load that."
        )
    if needs_optimizer:
        for problem in _optimizer_problems(folder, saved, args):
            raise UserError(f"{what}: {problem}")


def _optimizer_problems(folder: Path, saved: dict[str, Any], args: Any) -> Iterator[str]:
    if args.no_load_optim or saved.get("no_save_optim"):
        return
    was_shared_out = bool(saved.get("use_distributed_optimizer"))
    if was_shared_out != bool(args.use_distributed_optimizer):
        what = f"it was saved with `use_distributed_optimizer: {str(was_shared_out).lower()}`"
        yield f"{what}; use the same value, or `no_load_optim: true`"
    if not was_shared_out:
        return
    if not (args.bf16 or args.fp16):
        yield "an fp32 model cannot load the state of its distributed optimizer; set `no_load_optim: true`"
    # The engine takes this state, and the iteration, from the tracker's checkpoint, whichever is loaded.
    if (named := tracked(folder.parent)) != str(int(folder.name.removeprefix("iter_"))):
        yield (
            f"with `use_distributed_optimizer`, only the iteration in {TRACKER} ({named or 'none'}) can be "
            "loaded: write another one into that file in place of `ckpt_step`, or set `no_load_optim: true`"
        )


def _shown(value: Any) -> Any:
    """Return a value of a layout as it is compared; objects of the engine are only set or not."""
    return value if isinstance(value, int | str | None) else "set"


def check_names(file: Path, models: list[Any]) -> None:
    """Raise `UserError` if a rank's file does not hold the tensors of its models, by name.

    The engine loads what it finds, and leaves the rest at its initial values.
    """
    saved = read_rank(file)
    for number, model in enumerate(models):
        key = f"model{number}" if len(models) > 1 else "model"
        own = set(model.state_dict_for_save_checkpoint())
        names = set(saved[key]) if isinstance(saved.get(key), dict) else set()
        wrong = sorted(name for name in own ^ names if not name.endswith(EXTRA_STATE))
        if wrong:
            raise UserError(
                f"{file}: {len(wrong)} tensors of `{key}` are not the same as in this run's model: "
                f"{', '.join(wrong[:3])}; use the model and `transformer_impl` that saved it"
            )
