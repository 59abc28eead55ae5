"""Known upstream messages that tell a user nothing or the wrong thing, each silenced by its text."""

from __future__ import annotations

import logging
import warnings

_WARNINGS = (
    # FlagScale chooses plain torch layers itself when TransformerEngine and Apex are absent.
    r"Apex is not installed",
    r"Transformer Engine and Apex are not installed",
    r"Only transformer-engine>=",
    # A module the trainer imports and a GPT model never uses.
    r"MimoModelConfig is experimental",
    # The engine's to mend: the pinned torch still has both names.
    r"`torch.distributed.\w+` is deprecated",
    # The trainer always asks for pinned memory; without CUDA there is nothing to pin for.
    r"'pin_memory' argument is set as true but no accelerator",
    # The optimizer looks at its views of the gradient buffer on purpose.
    r"The .grad attribute of a Tensor that is not a leaf Tensor is being accessed",
    # Every rank reads the common part of a checkpoint by itself, on purpose.
    r"torch.distributed is disabled, unavailable or uninitialized",
)

_LOG_MESSAGES = {
    # By construction on CPU: the device's random state is the CPU's.
    "megatron.core.tensor_parallel.random": ("CPU RNG state changed within GPU RNG context",),
    # The engine prefers hybrid models; a GPT model is what the user asked for.
    "megatron.core.models.gpt.gpt_model": ("GPTModel IS DEPRECATED",),
    # Said at every save, also of synchronous ones.
    "megatron.core.dist_checkpointing.strategies.torch": ("MCore's async save is deprecated",),
    # The modes of the result validation, said twice an evaluation, and that it is on.
    "megatron.core.rerun_state_machine": ("RerunStateMachine", "Result validation enabled"),
    # torch, when its CUDA build finds no device; the platform already knows.
    "torch.utils.cpp_extension": ("No CUDA runtime is found",),
}


def quiet() -> None:
    """Silence them in this process; to be called before the engine is imported."""
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
