"""The frame of a training program: Megatron's own trainer with a program's arguments, data and forward step.

A program is a Python file that ends in

    if __name__ == "__main__":
        sys.exit(run(add_arguments=add_arguments, datasets=datasets, forward_step=forward_step))

and may have a model of its own too (`model_config`).

Saving a checkpoint spawns processes that import the program again: it must not import anything heavy at its
top, and this module does not either. See docs/programs.md.
"""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from megatron.flagscale.startup import importing
from megatron.flagscale.supervision import (
    die_with_parent,
    heartbeat,
    ignore_sigterm,
    leave_requests_to_torchrun,
    write_stacks_when_asked,
)

if TYPE_CHECKING:
    import argparse

    from megatron.flagscale.args import AddArguments

ModelConfig = Callable[["argparse.Namespace"], Any]
"""`(args) -> configuration`: Megatron's `GPTModelConfig`, or a subclass with a `builder` of its own."""
Datasets = Callable[..., Any]
"""`(num_samples, vp_stage=None) -> (train, validation, test)`: map-style datasets, None for one that is not
used; `num_samples` holds how many samples of each the job uses. Called on the first rank of each tensor
parallel group, or on every rank if the function has the attribute `is_distributed = True`. If it sets the
argument `dataloader_type` to `external`, they are iterators of micro-batches instead."""
ForwardStep = Callable[..., tuple[Any, Any]]
"""`(data_iterator, model) -> (output, loss function)`, as Megatron's `pretrain` expects it."""


def run(
    *,
    add_arguments: AddArguments | None = None,
    model_config: ModelConfig | None = None,
    datasets: Datasets | None = None,
    forward_step: ForwardStep | None = None,
) -> int:
    """Run one rank of a training program and return 0, or end the process.

    `add_arguments` adds the program's arguments to Megatron's parser; `megatron.training.get_args()` holds
    their values. Without `model_config` the model is a GPT model; without `datasets` the program reads
    Megatron's `.bin/.idx` files (`data_path`) or mock data; without `forward_step` it trains on batches of
    `tokens`, `labels`, `loss_mask` and `position_ids`. The launcher reads from this call in the program's
    file which of them it has: pass them by name.

    A user's error ends the process with exit code 2, any other error with its traceback and exit code 1. Both
    write the structured error file that torchrun asked for; torchrun reports a user's error in one line.
    """
    with importing():
        from torch.distributed.elastic.multiprocessing.errors import record

    from flagscale.errors import UserError

    write_stacks_when_asked()
    leave_requests_to_torchrun()
    die_with_parent()

    def train_this(argv: list[str]) -> None:
        train(
            argv,
            add_arguments=add_arguments,
            model_config=model_config,
            datasets=datasets,
            forward_step=forward_step,
        )

    try:
        record(train_this)(sys.argv[1:])
    except UserError as error:
        if "TORCHELASTIC_ERROR_FILE" not in os.environ:
            print("\n".join(f"error: {problem}" for problem in error.problems), file=sys.stderr)
        code = error.exit_code
    except Exception:
        traceback.print_exc()
        code = 1
    else:
        return 0
    finally:
        # Python's exit takes a moment; a late signal must not turn a saved checkpoint into a failure.
        ignore_sigterm()
    # Exit at once: tearing down process groups with dead peers can hang, and hides which rank failed first.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def train(
    argv: list[str],
    *,
    add_arguments: AddArguments | None = None,
    model_config: ModelConfig | None = None,
    datasets: Datasets | None = None,
    forward_step: ForwardStep | None = None,
) -> None:
    """Train with these arguments; raises `UserError` for a user's mistake. For the other ones see `run`."""
    with importing():
        pretrain, *positional, seams = _prepared(argv, add_arguments, model_config, datasets, forward_step)
    try:
        pretrain(*positional, **seams)
    except SystemExit as end:
        from megatron.training import get_args

        from megatron.flagscale.steering.stopping import why_it_exits

        if error := why_it_exits(end.code, get_args()):
            raise error from end
        raise


def _prepared(
    argv: list[str],
    add_arguments: AddArguments | None,
    model_config: ModelConfig | None,
    datasets: Datasets | None,
    forward_step: ForwardStep | None,
) -> tuple[Any, ...]:
    """Import the engine; return its `pretrain`, the positional arguments for it, and those by name."""
    from flagscale.checks.worker import DATASETS, FORWARD_STEP, MODEL_CONFIG
    from megatron.flagscale.bootstrap import adapt, prepare_engine
    from megatron.flagscale.hetero.arguments import own_part

    part = own_part(argv, add_arguments)
    given = {MODEL_CONFIG: model_config, DATASETS: datasets, FORWARD_STEP: forward_step}
    own_parts = {name for name, value in given.items() if value is not None}
    sys.argv[1:] = prepare_engine(part.argv if part else argv, add_arguments, own_parts)

    import torch._dynamo  # noqa: F401 - the optimizer imports it
    from megatron.core.enums import ModelType
    from megatron.training import pretrain
    from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args

    from megatron.flagscale import forward
    from megatron.flagscale.args import parse
    from megatron.flagscale.data import build_datasets
    from megatron.flagscale.hetero import join, parse_own
    from megatron.flagscale.layers.prediction_heads import embedding_ranks
    from megatron.flagscale.recompute import schedule_recompute
    from megatron.flagscale.tracing import prepare_tracing
    from megatron.flagscale.validation import prepare_validation

    args = parse_own(part, add_arguments) if part else parse(add_arguments)
    config = (model_config or gpt_config_from_args)(args)
    adapt(config, args)
    schedule_recompute(config, args)
    prepare_validation(args)
    prepare_tracing(args)
    if part:
        seams = join(part, args, config)
    else:
        seams = {"get_embedding_ranks": functools.partial(embedding_ranks, config.transformer)}
    return (
        pretrain,
        pretrain_cfg_container_from_args(args, config),
        datasets or build_datasets,
        ModelType.encoder_or_decoder,
        _with_heartbeat(forward_step or forward.forward_step),
        seams,
    )


def _with_heartbeat(forward_step: ForwardStep) -> ForwardStep:
    @functools.wraps(forward_step)
    def step(data_iterator: Any, model: Any, **schedule: Any) -> tuple[Any, Any]:
        heartbeat()
        return forward_step(data_iterator, model, **schedule)

    return step


if "--multiprocessing-fork" in sys.orig_argv:
    # The trainer spawned this process, which imports the program again: it has to end with its rank, but not
    # earlier, because a checkpoint may be saved with its help.
    die_with_parent()
    ignore_sigterm()
