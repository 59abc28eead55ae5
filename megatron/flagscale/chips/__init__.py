"""The chip of this process: its device, collective backend, memory, patches and defaults stand here only."""

from __future__ import annotations

import functools
import os

from flagscale import registry
from flagscale.run.env import CHIP
from megatron.flagscale.chips.chip import HOST, HOST_BACKEND, AttentionKernels, Chip

__all__ = ["BUILT_IN", "HOST", "HOST_BACKEND", "AttentionKernels", "Chip", "chip"]

BUILT_IN = {
    "cpu": "megatron.flagscale.chips.cpu:CPU",
    "nvidia": "megatron.flagscale.chips.cuda:CUDA",
}
"""FlagScale's own chips; a package adds to them by the entry-point group `flagscale.chips`."""


@functools.cache
def chip() -> Chip:
    """Return the chip that the launcher named; without a launcher, CUDA's if torch finds one, else the CPU.

    Raises:
        UserError: no chip of that name is installed here.
    """
    name = os.environ.get(CHIP)
    if not name:
        import torch

        name = "nvidia" if torch.cuda.is_available() else "cpu"
    found: Chip = registry.load("chips", name, CHIP, BUILT_IN)
    return found
