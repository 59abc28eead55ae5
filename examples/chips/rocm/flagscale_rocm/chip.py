"""AMD GPUs as a rank uses them.

torch built for ROCm answers under CUDA's names: the device is `cuda`, `torch.cuda` is HIP, and the backend
`nccl` is RCCL ("HIP (ROCm) semantics", PyTorch documentation). A rank uses the chip as it uses NVIDIA's.
"""

from __future__ import annotations

from dataclasses import replace

from megatron.flagscale.chips.cuda import CUDA

ROCM = replace(
    CUDA,
    name="rocm",
    # torch for ROCm has operators of the same names, but on such a GPU nobody has compared their log-sum-exp
    # and gradients with the plain operations. Until then attention by blocks takes the plain ones.
    attention=None,
)
