"""What a chip is to the training worker: one frozen object that answers every question about the hardware.

A package adds a chip by the entry-point group `flagscale.chips`, under the name of its
`flagscale.platforms.Platform`: the launcher starts ranks with that name in the environment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron.flagscale.patching import Patch

if TYPE_CHECKING:
    import torch

HOST = "cpu"
"""Host memory, as torch names it as a device."""
HOST_BACKEND = "gloo"
"""The collective backend for tensors in host memory; torch has it on every machine."""


@dataclass(frozen=True)
class AttentionKernels:
    """Attention that returns the log-sum-exp of each query's scores and takes it back for the gradients.

    `attend` and `backward` are those of `megatron.flagscale.layers.kernels`, which states shapes and meaning.
    """

    takes: Callable[[torch.Tensor], bool]
    """Whether the kernels can compute attention with these queries `[batch, heads, queries, width]`."""
    attend: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    backward: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Chip:
    """One kind of chip, as a rank uses it.

    Its module is imported, and its patches of torch are applied, before the engine is imported: it may
    import torch and a vendor's extension of torch, but not the engine.
    """

    name: str
    """The name of the platform as well: what `runner.platform` and `type=` in a hostfile say."""
    backend: str
    """The collective backend of `torch.distributed` for tensors on the chip. If torch does not bring it, the
    module of the chip registers it."""
    set_device: Callable[[int], None]
    """Take the device with this index among those that the process may use: the local rank."""
    device: Callable[[], torch.device]
    """Return this rank's device, with its index where there are several."""
    memory_bytes: Callable[[], int]
    """Return the most memory that this rank has held so far, in bytes."""
    patches: tuple[Patch, ...] = ()
    """What must be changed in the engine, or in torch under it, so that they run on this chip."""
    defaults: tuple[str, ...] = ()
    """Arguments of the engine, put before the user's own: what it turns on and this chip cannot do."""
    attention: AttentionKernels | None = None
    """None: attention by blocks is computed in plain operations of torch."""
    compiles: bool = True
    """Whether `torch.compile` makes kernels for it. If not, FlagScale's compiled loss is not used."""
    pins_memory: bool = True
    """Whether copies to the device are faster from pinned host memory."""
    is_host_processor: bool = False
    """Whether its tensors are in host memory: nothing that needs CUDA kernels can be asked for."""
