"""Known upstream messages that tell a user nothing, or the wrong thing; each silenced by its text, with the reason."""

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
)

_LOG_MESSAGES = {
    # By construction on CPU: the device's random state is the CPU's.
    "megatron.core.tensor_parallel.random": "CPU RNG state changed within GPU RNG context",
    # The engine prefers hybrid models; a GPT model is what the user asked for.
    "megatron.core.models.gpt.gpt_model": "GPTModel IS DEPRECATED",
    # Said at every save, also of synchronous ones.
    "megatron.core.dist_checkpointing.strategies.torch": "MCore's async save is deprecated",
    # The modes of the result validation, said twice an evaluation.
    "megatron.core.rerun_state_machine": "RerunStateMachine",
    # torch, when its CUDA build finds no device; the platform already knows.
    "torch.utils.cpp_extension": "No CUDA runtime is found",
}


def quiet() -> None:
    """Silence them in this process; to be called before the engine is imported."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    for logger, message in _LOG_MESSAGES.items():
        logging.getLogger(logger).addFilter(_without(message))


def _without(message: str) -> logging.Filter:
    class Without(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            return message not in str(record.msg)

    return Without()
