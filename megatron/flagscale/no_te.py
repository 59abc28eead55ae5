"""Support for machines without TransformerEngine and Apex: plain torch layers and torch's own AdamW."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from megatron.flagscale.patching import Patch

# Turn off what the engine enables by default but only those packages provide.
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
        groups = self.optimizer.param_groups
        if any(group["params"] for group in groups):
            return original(self)
        # Experts on a mesh without expert parallelism get the step from the others (see optimizer_state.py).
        stand_in = torch.zeros(())
        groups[0]["params"].append(stand_in)
        self.optimizer.state[stand_in] = {"step": torch.zeros(())}
        try:
            return original(self)
        finally:
            groups[0]["params"].clear()
            del self.optimizer.state[stand_in]

    return state_dict


def _step_is_not_loaded_per_tensor(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def set_states(self: Any, model_param: Any, tensors: dict[str, Any]) -> None:
        group, order = self.model_param_group_index_map[model_param]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][order]]
        original(self, model_param, {"step": state.get("step"), **tensors})

    return set_states


def _without_fp8(original: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(original)
    def init(self: Any, fp8: Any = None) -> None:
        original(self, fp8 or None)

    return init


def _copies_bytes(original: Callable[[], Callable[..., None]]) -> Callable[[], Callable[..., None]]:
    def fill(emptied: Any, again: Any) -> None:
        # A storage has no version counter: autograd accepts that saved tensors get their contents back.
        storage, source = emptied.untyped_storage(), again.untyped_storage()
        storage.resize_(source.size())
        storage.copy_(source)

    return lambda: fill


_OPTIMIZER = "megatron.core.optimizer.distrib_optimizer:DistributedOptimizer"
_UNTIL = "the distributed optimizer loads its own checkpoints with torch's AdamW"

_RECOMPUTE = "megatron.core.tensor_parallel.random"

PATCHES = (
    Patch(
        f"{_RECOMPUTE}:CheckpointWithoutOutput.__init__",
        _without_fp8,
        "It takes False for an FP8 recipe and then names a class of TransformerEngine: recomputing norms or "
        "the projections of latent attention fails.",
        "no-te",
        until="it takes False for False",
    ),
    Patch(
        f"{_RECOMPUTE}:_get_share_storage",
        _copies_bytes,
        "It compiles C++ in the first backward pass, which needs a compiler on every host.",
        "no-te",
        until="the wheel ships the compiled function",
    ),
    Patch(
        f"{_OPTIMIZER}.state_dict",
        _allocate_before_state_dict,
        "It reads the step count from the optimizer's state, which torch's AdamW creates only at its first "
        "step and only if it has parameters: loading a checkpoint fails on the empty list.",
        "no-te",
        until=_UNTIL,
    ),
    Patch(
        f"{_OPTIMIZER}._set_main_param_and_optimizer_states",
        _step_is_not_loaded_per_tensor,
        "It expects a step tensor per parameter in the checkpoint, but the step is saved once per group.",
        "no-te",
        until=_UNTIL,
    ),
)
