"""AMD GPUs as a rank uses them.

torch built for ROCm keeps CUDA's names: the device is `cuda`, `torch.cuda` is HIP, and the backend `nccl` is
RCCL ("HIP (ROCm) semantics", PyTorch documentation). A rank therefore uses the chip as it uses NVIDIA's.
"""

from __future__ import annotations

from dataclasses import replace

from megatron.flagscale.chips.cuda import CUDA

ROCM = replace(
    CUDA,
    name="rocm",
    # torch for ROCm has operators of the same names, but their log-sum-exp and gradients have not yet been
    # compared with the plain operations on such a GPU. Until then, blockwise attention uses the plain ones.
    attention=None,
)
