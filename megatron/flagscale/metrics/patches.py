"""Patches that record the trainer's figures for metrics.jsonl and the progress line: it has no callback.

Only the last rank writes, because it has the loss.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from megatron.flagscale.args import changed_arguments
from megatron.flagscale.checkpoint.resume import CONSUMED_TOKENS
from megatron.flagscale.metrics.recorder import Recorder
from megatron.flagscale.metrics.tracking import tracking_of
from megatron.flagscale.patching import Patch
from megatron.flagscale.steering.steps import steering


@functools.cache
def recorder() -> Recorder | None:
    """Return this process's recorder, or None on ranks that do not report."""
    from megatron.training import get_args, is_last_rank

    if not is_last_rank():
        return None
    args = get_args()
    return Recorder(args.metrics_file, tracking_of(args, changed_arguments))


def _record_training(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def training_log(
        loss_dict: Mapping[str, Any],
        total_loss_dict: dict[str, Any],
        learning_rate: float | None,
        iteration: int,
        loss_scale: float,
        report_memory_flag: bool,
        skipped_iter: int,
        grad_norm: float | None,
        *rest: Any,
        **named: Any,
    ) -> Any:
        from megatron.core.num_microbatches_calculator import get_current_global_batch_size
        from megatron.training import get_args, get_timers
        from megatron.training.training import num_floating_point_operations

        report, steered = recorder(), steering()
        if report:
            report.start(iteration - 1)
        outcome = original(
            loss_dict,
            total_loss_dict,
            learning_rate,
            iteration,
            loss_scale,
            False,  # no memory report of twenty lines: each line of metrics contains the memory
            skipped_iter,
            grad_norm,
            *rest,
            **named,
        )
        args, batch_size = get_args(), get_current_global_batch_size()
        lengths = {name: named.get(name) for name in _LENGTHS}
        tokens = lengths[_LENGTHS[0]]
        if tokens is not None:
            # Every rank has the sum. The arguments are saved with a checkpoint.
            setattr(args, CONSUMED_TOKENS, getattr(args, CONSUMED_TOKENS, 0) + round(tokens))
        if report:
            report.meter.add({**loss_dict, **_further}, bool(skipped_iter))
        if report and not steered.is_left_out:
            report.meter.add_work(
                batch_size * args.seq_length if tokens is None else tokens,
                num_floating_point_operations(args, batch_size, **lengths),
            )
        _further.clear()
        is_logged = iteration % args.log_interval == 0 or named.get("is_first_iteration")
        own: dict[str, Any] = {name: figure() for name, figure in _figures.items()} if is_logged else {}
        own |= steered.figures() if is_logged else {}
        further_flops = sum(flops() for flops in _flops) if is_logged else 0.0
        if report and is_logged:
            report.meter.add_work(0.0, further_flops)
            consumed = args.consumed_train_samples * args.seq_length
            figures = {
                # An iteration that is left out counts none, also if the others count theirs.
                "consumed_tokens": getattr(args, CONSUMED_TOKENS, 0) or consumed,
                "batch_size": batch_size,
                "learning_rate": learning_rate,
                "grad_norm": None if grad_norm is None else float(grad_norm),
                "loss_scale": float(loss_scale),
                **own,
            }
            report.iteration(args, iteration, get_timers()("interval-time").active_time(), figures)
        return outcome

    return training_log


_LENGTHS = ("total_real_tokens_in_batch", "seqlen_squared_sum_in_batch")
"""Sums over the samples of a step, which the trainer passes on if a program counts them (else None)."""
_figures: dict[str, Callable[[], float]] = {}


def add_figure(name: str, figure: Callable[[], float]) -> None:
    """Record a figure of a training program's own; all ranks call `figure` at each logged iteration."""
    _figures[name] = figure


_flops: list[Callable[[], float]] = []


def add_flops(flops: Callable[[], float]) -> None:
    """Add floating-point operations of a training program's own to those of the language model.

    All ranks call `flops` at each logged iteration; it returns those of all ranks since the last call.
    """
    _flops.append(flops)


# The losses of routers and prediction heads in the current iteration: from the functions that reduce them.
_further: dict[str, Any] = {}


_OF_KINDS = {
    "aux_loss": "load_balancing_loss",
    "seq_aux_loss": "seq_load_balancing_loss",
    "global_aux_loss": "global_load_balancing_loss",
}
"""The engine's name of the loss of each kind of load balancing."""


def _weighted_losses(args: Any) -> set[str]:
    """Return the losses of routers that count; the engine also lists those without a weight."""
    kinds, weights = (
        one if isinstance(one, list) else [one]
        for one in (args.moe_router_load_balancing_type, args.moe_aux_loss_coeff)
    )
    pairs = zip(kinds, weights, strict=True)
    of_kinds = {_OF_KINDS[kind] for kind, weight in pairs if weight and kind in _OF_KINDS}
    return of_kinds | {"z_loss"} if args.moe_z_loss_coeff else of_kinds


def _record_routers(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def aggregate(self: Any, *positional: Any, **named: Any) -> dict[str, Any]:
        import torch
        from megatron.core import mpu
        from megatron.training import get_args

        args = get_args()
        found: dict[str, Any] = original(self, *positional, **named)
        weighted = _weighted_losses(args)
        names = [name for name in found if name in weighted]
        # With unequal meshes, all ranks have the whole sums (megatron/flagscale/hetero/patches.py).
        if names and not args.hetero_layout:
            entries = [self.metrics[name] for name in names]
            is_known = [bool(entry.reduce_group or entry.avg_group) for entry in entries]
            # A stage without experts knows no groups to reduce over, and has partial sums.
            values = torch.stack([found[name] * known for name, known in zip(names, is_known, strict=True)])
            pipeline = mpu.get_pipeline_model_parallel_group()
            torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX, pipeline)
            found |= zip(names, values, strict=True)
        _further.update({name: found[name] for name in names})
        return found

    return aggregate


def _record_heads(original: Any) -> Any:
    track = original.__func__

    @functools.wraps(track)
    def track_mtp_metrics(
        loss_scale: float,
        iteration: int,
        writer: Any,
        wandb_writer: Any = None,
        total_loss_dict: dict[str, Any] | None = None,
    ) -> None:
        found: dict[str, Any] = {}
        track(loss_scale, iteration, writer, wandb_writer, found)
        _further.update(found)
        if total_loss_dict is not None:
            for name, loss in found.items():
                total_loss_dict[name] = total_loss_dict.get(name, 0) + loss

    return staticmethod(track_mtp_metrics)


# The split, data set and iteration of the current evaluation: from the outer function to the inner one.
_evaluating: tuple[str, str, int] = ("validation", "", 0)


def _evaluate_each_set(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def evaluate_and_print_results(
        prefix: str, forward_step: Any, data: Any, model: Any, iteration: int, *rest: Any, **named: Any
    ) -> None:
        global _evaluating
        from megatron.flagscale.validation import evaluations

        for split, name, own_data in evaluations(prefix, data, iteration):
            _evaluating = (split, name, iteration)
            original(prefix, forward_step, own_data, model, iteration, *rest, **named)

    return evaluate_and_print_results


def _record_evaluation(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def evaluate(*positional: Any, **named: Any) -> Any:
        from megatron.training import get_args

        losses, collected, time_is_up = original(*positional, **named)
        report = recorder()
        if report and losses:
            split, name, iteration = _evaluating
            values = {kind: float(loss) for kind, loss in losses.items()}
            report.evaluation(get_args(), iteration, split, name, values)
        return losses, collected, time_is_up

    return evaluate


_UNTIL = "the trainer accepts a callback for what it logs"

PATCHES = (
    Patch(
        "megatron.training.training:training_log",
        _record_training,
        "It is the only place with the loss, norm and speed of every iteration, and it has no callback.",
        "worker",
        until=_UNTIL,
    ),
    Patch(
        "megatron.training.training:evaluate_and_print_results",
        _evaluate_each_set,
        "It knows split and iteration; it evaluates all sets at once, and whole ones only if several.",
        "worker",
        until=_UNTIL,
    ),
    Patch(
        "megatron.training.training:evaluate",
        _record_evaluation,
        "It returns the validation losses, which are recorded here.",
        "worker",
        until=_UNTIL,
    ),
    Patch(
        "megatron.core.transformer.moe.moe_logging:MoEMetricsTracker._aggregate",
        _record_routers,
        "It returns the losses of routers, which the trainer adds to sums that it resets before it returns. "
        "On a pipeline stage without experts, which may be the one that reports, they are partial sums.",
        "worker",
        until=_UNTIL,
    ),
    Patch(
        "megatron.core.transformer.multi_token_prediction:MTPLossLoggingHelper.track_mtp_metrics",
        _record_heads,
        "It adds the losses of the prediction heads to sums that the trainer resets before it returns.",
        "worker",
        until=_UNTIL,
    ),
    Patch(
        "megatron.training.training:print_rank_last",
        lambda original: lambda message: None,
        "It prints only the trainer's own log lines, which the recorder replaces with one line.",
        "worker",
        until=_UNTIL,
    ),
)
