"""Silence known upstream messages that are useless or misleading for a user, each matched by its text."""

from __future__ import annotations

import logging
import warnings

_WARNINGS = (
    # FlagScale chooses plain torch layers itself if TransformerEngine and Apex are not installed.
    r"Apex is not installed",
    r"Transformer Engine and Apex are not installed",
    r"Only transformer-engine>=",
    # The trainer imports this module, but a GPT model never uses it.
    r"MimoModelConfig is experimental",
    # Only the engine can fix this; the pinned torch still has both names.
    r"`torch.distributed.\w+` is deprecated",
    # The trainer always asks for pinned memory; without CUDA it has no effect.
    r"'pin_memory' argument is set as true but no accelerator",
    # The optimizer accesses its views of the gradient buffer on purpose.
    r"The .grad attribute of a Tensor that is not a leaf Tensor is being accessed",
    # Each rank reads the common part of a checkpoint on its own, on purpose.
    r"torch.distributed is disabled, unavailable or uninitialized",
)

_LOG_MESSAGES = {
    # This is always so on CPU: the device's random state is the CPU's.
    "megatron.core.tensor_parallel.random": ("CPU RNG state changed within GPU RNG context",),
    # The engine recommends hybrid models, but the user asked for a GPT model.
    "megatron.core.models.gpt.gpt_model": ("GPTModel IS DEPRECATED",),
    # It is logged at every save, even a synchronous one.
    "megatron.core.dist_checkpointing.strategies.torch": ("MCore's async save is deprecated",),
    # The mode of the result validation, logged twice per evaluation, the fact that it is enabled, and the
    # checkpoint that it cannot continue from (megatron/flagscale/steering/stopping.py).
    "megatron.core.rerun_state_machine": (
        *("RerunStateMachine", "Result validation enabled", "Saving a checkpoint and exiting now"),
    ),
    # Logged by torch's CUDA build if it finds no device; the platform already knows that.
    "torch.utils.cpp_extension": ("No CUDA runtime is found",),
}


def quiet() -> None:
    """Silence these messages in this process; must be called before the engine is imported."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for logger, messages in _LOG_MESSAGES.items():
        logging.getLogger(logger).addFilter(_Without(messages))


class _Without(logging.Filter):
    def __init__(self, messages: tuple[str, ...]) -> None:
        super().__init__()
        self.messages = messages

    def filter(self, record: logging.LogRecord) -> bool:
        return not any(message in str(record.msg) for message in self.messages)
