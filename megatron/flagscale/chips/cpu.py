"""The host's own processors: tensors in host memory, gloo collectives, and CUDA's names mapped to the CPU."""

from __future__ import annotations

import resource

import torch

from megatron.flagscale.chips import cpu_patches, forked_save, gloo
from megatron.flagscale.chips.chip import HOST, HOST_BACKEND, AttentionKernels, Chip

_aten = torch.ops.aten

# Turn off what the engine enables by default but only CUDA supports, or what only helps beside a device.
_DEFAULTS = (
    # Processes that load samples would take the processors from training. They are forked when the model
    # exists: the first step would copy all weights and the optimizer's state, which they keep.
    "--num-workers=0",
    "--async-strategy=mcore",  # the other one starts a process that needs a CUDA device
    "--no-bias-gelu-fusion",
    "--no-bias-swiglu-fusion",
    "--no-bias-dropout-fusion",
)


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)
    return out, lse


def _backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    grads = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, q, k, v, out, lse, 0.0, causal, scale=scale
    )
    return grads[0], grads[1], grads[2]


CPU = Chip(
    name="cpu",
    backend=HOST_BACKEND,
    set_device=lambda local_rank: None,
    device=lambda: torch.device(HOST),
    # The peak resident memory of the process, which Linux reports in KiB.
    memory_bytes=lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    patches=(*cpu_patches.PATCHES, *gloo.PATCHES, *forked_save.PATCHES),
    defaults=_DEFAULTS,
    attention=AttentionKernels(lambda q: q.device.type == HOST, _attend, _backward),
    compiles=False,
    pins_memory=False,
    is_host_processor=True,
)
