"""A machine without TransformerEngine and Apex: plain torch layers and torch's own AdamW."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from megatron.flagscale.patches import Patch

# What the engine turns on by default but only those packages provide.
DEFAULTS = (
    "--transformer-impl=torch",
    "--no-masked-softmax-fusion",
    "--no-persist-layer-norm",
    "--no-gradient-accumulation-fusion",
    "--no-rope-fusion",
)


def _allocate_before_state_dict(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def state_dict(self: Any) -> Any:
        import torch

        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                state = self.optimizer.state[parameter]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32)
                    for key in self.optimizer_state_keys:
                        state[key] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return original(self)

    return state_dict


def _own_step_per_parameter(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def load_state_dict(self: Any, state_dict: dict[str, Any]) -> None:
        original(self, state_dict)
        for state in self.optimizer.state.values():
            if "step" in state:
                state["step"] = state["step"].detach().clone()

    return load_state_dict


def _step_is_not_loaded_per_tensor(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def set_states(self: Any, model_param: Any, tensors: dict[str, Any]) -> None:
        group, order = self.model_param_group_index_map[model_param]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]]
        original(self, model_param, {"step": state.get("step"), **tensors})

    return set_states


def _experts_join_or_leave(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def load_state_dict(self: Any, state_dict: Any) -> None:
        original(self, regroup(state_dict, len(self.chained_optimizers)))

    return load_state_dict


def regroup(state: dict[Any, Any], wanted: int) -> dict[Any, Any]:
    """Turn the state of as many optimizers as a checkpoint was saved with into that of `wanted` ones.

    One optimizer is `{"optimizer": ..., ...}`, a chain `{0: {"optimizer": ...}, 1: ...}`. Tensors already are
    where the model that loads wants them; what differs is the common part, the same for all but for the mark
    of groups of experts.
    """
    whole = state.get("optimizer")
    if wanted == 1 and whole is None and 0 in state:
        return {**state[0], **{key: value for key, value in state.items() if not isinstance(key, int)}}
    if wanted > 1 and whole is not None:
        groups = [
            {**group, "is_expert_parallel": is_expert}
            for group in whole["param_groups"]
            for is_expert in (False, True)
        ]
        common = {**state, "optimizer": {**whole, "param_groups": groups}}
        shared = {key: value for key, value in common.items() if not isinstance(key, int)}
        return {index: {**shared, **state.get(index, {})} for index in range(wanted)}
    return state


_OPTIMIZER = "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer"
_UNTIL = "the distributed optimizer loads its own checkpoints with torch's AdamW"

PATCHES = (
    Patch(
        "megatron.core.optimizer.optimizer:ChainedOptimizer.load_state_dict",
        _experts_join_or_leave,
        "With expert parallel, experts have an optimizer of their own, and a checkpoint saved with it cannot "
        "be loaded without, nor the reverse.",
        "worker",
        until="the common state of optimizers is saved in one form",
    ),
    Patch(
        f"{_OPTIMIZER}.state_dict",
        _allocate_before_state_dict,
        "It reads the step count from the optimizer's state, which torch's AdamW makes at the first step "
        "only: loading a checkpoint fails on the empty list.",
        "no-te",
        until=_UNTIL,
    ),
    Patch(
        f"{_OPTIMIZER}.load_state_dict",
        _own_step_per_parameter,
        "It stores one step tensor in every parameter's state; AdamW then counts it up once a parameter, "
        "and the resumed run goes on silently wrong.",
        "no-te",
        until=_UNTIL,
    ),
    Patch(
        f"{_OPTIMIZER}._set_main_param_and_optimizer_states",
        _step_is_not_loaded_per_tensor,
        "It asks the checkpoint for a step tensor of each parameter, but the step is saved once a group.",
        "no-te",
        until=_UNTIL,
    ),
)
