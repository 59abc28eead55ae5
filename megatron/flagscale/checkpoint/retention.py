"""Remove old checkpoints when a newer one is complete (`keep_last`, `keep_every`).

Rank 0 renames them after the tracker file names the new one, and deletes them in a thread of its own while
the training continues. An interrupted deletion is finished after the next save.
"""

from __future__ import annotations

import argparse
import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flagscale.run.retention import Retention, remove_rest, set_aside
from megatron.flagscale.patching import Patch

_threads: list[threading.Thread] = []
"""The newest thread that deletes files."""


def add_retention_args(group: argparse._ArgumentGroup) -> None:
    """Add `--keep-last` and `--keep-every`."""
    group.add_argument(
        "--keep-last",
        type=int,
        metavar="N",
        help="Remove older checkpoints when a newer one is complete, and keep the newest N of them.",
    )
    group.add_argument(
        "--keep-every",
        type=int,
        metavar="M",
        help="With --keep-last: also keep the checkpoints of iterations that are multiples of M for ever.",
    )


def remove_old(args: Any) -> None:
    """Remove the checkpoints of a run (`args`) that it does not keep; all ranks may call it.

    A failure is printed and does not end the run.
    """
    import torch

    if args.keep_last is None or torch.distributed.get_rank() != 0:
        return
    directory = Path(args.save)
    # The engine has the iteration that was loaded from `load` in `ckpt_step`; it may be another folder.
    is_own = args.load is not None and Path(args.load).resolve() == directory.resolve()
    try:
        set_aside(
            directory, Retention(args.keep_last, args.keep_every or 0), args.ckpt_step if is_own else None
        )
    except OSError as error:
        _report(directory, error)
        return
    if _threads and _threads[0].is_alive():
        return  # it is slower than the training; the next save removes the rest
    _threads[:] = [threading.Thread(target=_delete, args=(directory,), name="removes old checkpoints")]
    _threads[0].start()


def _delete(directory: Path) -> None:
    try:
        remove_rest(directory)
    except OSError as error:
        _report(directory, error)


def _report(directory: Path, error: OSError) -> None:
    what = f"old checkpoints in {directory} cannot be removed: {error.strerror or error}"
    print(f"flagscale: {what}; the training continues", flush=True)


def _removing_when_finished(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def schedule_async_save(request: Any) -> None:
        from megatron.training import get_args

        # The trainer's own functions, of which one updates the tracker file, have been added before.
        request.add_finalize_fn(functools.partial(remove_old, get_args()))
        original(request)

    return schedule_async_save


PATCHES = (
    Patch(
        "megatron.training.checkpointing:schedule_async_save",
        _removing_when_finished,
        "An asynchronous save has no callback for when it is finished. The engine's `save_retain_interval` "
        "deletes files in place, so that an interrupted deletion looks like a damaged checkpoint.",
        "worker",
        until="the engine keeps the newest checkpoints, and renames the others before it deletes them",
    ),
)
