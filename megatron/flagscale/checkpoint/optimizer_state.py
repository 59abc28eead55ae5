"""Convert the common optimizer state of a checkpoint to its form with or without expert parallelism."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from flagscale.errors import UserError
from megatron.flagscale.patching import Patch

if TYPE_CHECKING:
    import torch


def _experts_join_or_leave(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def load_state_dict(self: Any, state_dict: Any) -> None:
        # A checkpoint in the `torch` format has a list, and is only loaded in the layout that saved it.
        is_list = isinstance(state_dict, list)
        original(self, state_dict if is_list else regroup(state_dict, len(self.chained_optimizers)))

    return load_state_dict


def regroup(state: dict[Any, Any], wanted: int) -> dict[Any, Any]:
    """Convert the state of the optimizers in a checkpoint to the form for `wanted` optimizers.

    One optimizer is `{...}`, a chain `{0: {...}, 1: {...}}`. The entries that the loading model asked for
    (tensors, the parameters of each group) already have its form. The entries common to all ranks are as they
    were saved; between the optimizers they differ only in the flag of the groups of experts.
    """
    whole = {key: value for key, value in state.items() if not isinstance(key, int)}
    if wanted == 1 and 0 in state:
        merged: dict[Any, Any] = _merged(state[0], whole)
        return merged
    if wanted > 1 and _inner(whole).get("param_groups"):
        return {index: _merged(_of_chain(whole), state.get(index, {})) for index in range(wanted)}
    return state


def _of_chain(whole: dict[str, Any]) -> dict[str, Any]:
    """Return the common state of one optimizer of a chain; groups are known by flag, not by position."""
    groups = [
        {"params": [], **group, "is_expert_parallel": is_expert}
        for group in _inner(whole)["param_groups"]
        for is_expert in (False, True)
    ]
    inner = {**_inner(whole), "param_groups": groups}
    return {**whole, "optimizer": inner} if "optimizer" in whole else inner


def _inner(state: dict[str, Any]) -> dict[str, Any]:
    """Return the state in the form of torch's own optimizer; mixed precision wraps it."""
    inner: dict[str, Any] = state.get("optimizer", state)
    return inner


def _merged(common: Any, own: Any) -> Any:
    """Return the state saved for all ranks, updated at any depth with the entries this rank asked for."""
    if isinstance(common, dict) and isinstance(own, dict):
        return {**common, **{key: _merged(common.get(key, value), value) for key, value in own.items()}}
    if isinstance(own, list) and common and all(isinstance(one, dict) for one in common):
        return [*map(_merged, common, own), *common[len(own) :]]
    return own


def _all_tell_the_step(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def sharded_state_dict(self: Any, *positional: Any, **named: Any) -> Any:
        state = original(self, *positional, **named)
        if len(self.chained_optimizers) > 1:
            share_step([state[index] for index in range(len(self.chained_optimizers))])
        return state

    return sharded_state_dict


def share_step(states: Sequence[dict[str, Any]]) -> None:
    """Give all states of a chain of optimizers the same step: that of the optimizers with parameters.

    A plain optimizer holds it once (`common_step`), a sharded one in every group.
    """
    plain = [_inner(one)["state"] for one in states if "state" in _inner(one)]
    groups = [group for one in states for group in _inner(one)["param_groups"]]
    for reported, name in ((plain, "common_step"), (groups, "step")):
        steps = [one[name] for one in reported if name in one]
        for one in reported if steps else ():
            one[name] = max(steps)


def _skip_padding(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def sharded_state(self: Any, *positional: Any, **named: Any) -> Any:
        padded = [buffer.param_index_map for buffer in self.buffers]
        for buffer in self.buffers:
            buffer.param_index_map = positions_without_padding(buffer)
        try:
            return original(self, *positional, **named)
        finally:
            for buffer, positions in zip(self.buffers, padded, strict=True):
                buffer.param_index_map = positions

    return sharded_state


def positions_without_padding(buffer: Any) -> dict[Any, tuple[int, int, int]]:
    """Return where each parameter of a gradient buffer is if its buckets follow each other without padding.

    As in `buffer.param_index_map`: start, end and the number of the bucket.
    """
    shifts, end = [], 0
    for bucket in buffer.buckets:
        shifts.append(end - bucket.offset)
        end += bucket.numel_unpadded
    return {
        parameter: (start + shifts[number], stop + shifts[number], number)
        for parameter, (start, stop, number) in buffer.param_index_map.items()
    }


def _refuse_mixed_up(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def load_state(self: Any, state: dict[int, dict[str, Any]]) -> None:
        # The weights of the model are loaded first. An fp32 model shares them with the state.
        parameters = [parameter for buffer in self.buffers for parameter in buffer.param_index_map]
        for index, parameter in enumerate(parameters):
            is_own = parameter in self.model_param_gbuf_map
            if not is_own or self._is_distopt_quantized_param(parameter):
                continue
            if not is_rounded(state[index]["param"], parameter):
                what = "the state of the optimizer in the checkpoint does not belong to its weights"
                why = "it was saved by a version that mixed up padded buckets, or the files were changed"
                fix = "set `no_load_optim: true` to continue without it, or start with `finetune: true`"
                raise UserError(f"{what}: {why}; {fix}")
        original(self, state)

    return load_state


def is_rounded(precise: torch.Tensor, weights: torch.Tensor) -> bool:
    """Return whether `weights` are the precise values, or those values rounded to a shorter format."""
    import torch

    of_state = precise.to(weights.device, torch.float32).reshape(weights.shape)
    is_close: bool = torch.allclose(weights.detach().float(), of_state, rtol=1e-2, atol=1e-6)
    return is_close


PATCHES = (
    Patch(
        "megatron.core.optimizer.distrib_optimizer:"
        "DistributedOptimizer.sharded_param_state_fully_reshardable",
        _skip_padding,
        "It gathers buckets without padding, but reads parameters where they are with padding: behind padded "
        "buckets (tied embeddings on a stage, overlapped gradients), it saves parts of other parameters.",
        "worker",
        until="it reads the parameters of a gathered buffer without the padding between buckets",
    ),
    Patch(
        "megatron.core.optimizer.distrib_optimizer:"
        "DistributedOptimizer.load_parameter_state_from_fully_reshardable",
        _refuse_mixed_up,
        "Checkpoints saved without the entry above have states of other parameters. They are loaded without "
        "an error, and replace the correct weights.",
        "worker",
        until="no such checkpoints are left",
    ),
    Patch(
        "megatron.core.optimizer.optimizer:ChainedOptimizer.sharded_state_dict",
        _all_tell_the_step,
        "Rank 0 writes the step of every optimizer. That of experts has no parameters, and so no step, on a "
        "mesh without expert parallelism: ranks of a mesh with expert parallelism cannot resume from it.",
        "worker",
        until="the step is saved once for all optimizers",
    ),
    Patch(
        "megatron.core.optimizer.optimizer:ChainedOptimizer.load_state_dict",
        _experts_join_or_leave,
        "With expert parallelism, experts have an optimizer of their own: a checkpoint saved with expert "
        "parallelism cannot be loaded without it, or vice versa.",
        "worker",
        until="the common state of optimizers has the same form with and without expert parallelism",
    ),
)
