"""A chip as the training worker sees it: one frozen object that answers every question about the hardware.

A package adds a chip with the entry-point group `flagscale.chips`, under the name of its
`flagscale.platforms.Platform`: the launcher starts ranks with that name in the environment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from megatron.flagscale.patching import Patch

if TYPE_CHECKING:
    import torch

HOST = "cpu"
"""The name that torch has for host memory as a device."""
HOST_BACKEND = "gloo"
"""The collective backend for tensors in host memory; torch includes it on every machine."""


@dataclass(frozen=True)
class AttentionKernels:
    """Attention that returns the log-sum-exp of each query's scores and uses it again for the gradients.

    `attend` and `backward` have the arguments and results of `attend` and `attend_backward` in
    `megatron.flagscale.layers.kernels`, which documents shapes and meaning.
    """

    takes: Callable[[torch.Tensor], bool]
    """Return whether the kernels support these queries `[batch, heads, queries, width]`."""
    attend: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    backward: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    equal_widths: bool = True
    """Whether they need values of the width of the queries: others are padded with zeros for a call."""

    def padded(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        """Return tensors whose last dimension the kernels take."""
        from torch.nn.functional import pad

        width = max(tensor.size(-1) for tensor in tensors)
        if not self.equal_widths:
            return [*tensors]
        return [pad(one, (0, width - one.size(-1))) if one.size(-1) < width else one for one in tensors]


@dataclass(frozen=True)
class Chip:
    """One kind of chip, as a rank uses it.

    Its module is imported, and its patches of torch are applied, before the engine is imported: it may
    import torch and a vendor's extension for torch, but not the engine.
    """

    name: str
    """The name of the platform too: the value of `runner.platform`, or of `type=` in a hostfile."""
    backend: str
    """The collective backend of `torch.distributed` for tensors on the chip. If torch does not include it,
    the module of the chip registers it."""
    set_device: Callable[[int], None]
    """Select the device with this index, the local rank, among those that the process may use."""
    device: Callable[[], torch.device]
    """Return this rank's device, with its index if there are several."""
    memory_bytes: Callable[[], int]
    """Return the peak memory of this rank so far, in bytes."""
    record_memory: Callable[[], Callable[[Path], None]] | None = None
    """Begin to record each allocation; the function that it returns writes the record to a file and ends it.
    If None, torch's profiler records memory."""
    env: Mapping[str, str] = field(default_factory=lambda: {"CUDA_DEVICE_MAX_CONNECTIONS": "1"})
    """Environment variables that are set if absent, except with sharded data parallelism (FSDP). The default
    is what Megatron requires on every chip for tensor and context parallelism, and refuses with FSDP."""
    patches: tuple[Patch, ...] = ()
    """Changes of the engine, or of torch under it, without which they do not run on this chip."""
    defaults: tuple[str, ...] = ()
    """Engine arguments, placed before the user's own: they turn off defaults that this chip cannot
    use, or does not gain from."""
    attention: AttentionKernels | None = None
    """If None, blockwise attention is computed in plain torch operations."""
    sdpa_takes_other_widths: bool = False
    """Whether torch's `scaled_dot_product_attention` has a kernel on it for values of another width than
    queries; torch's fallback keeps the score matrix. If not, `attention` computes them."""
    has_rms_norm: bool = False
    """Whether torch has a kernel for `rms_norm` on it, forward and backward."""
    compiles: bool = True
    """Whether `torch.compile` generates kernels for it. If not, FlagScale's compiled loss is not used."""
    pins_memory: bool = True
    """Whether copies to the device are faster from pinned host memory."""
    is_host_processor: bool = False
    """Whether its tensors are in host memory: features that need CUDA kernels are then refused."""
