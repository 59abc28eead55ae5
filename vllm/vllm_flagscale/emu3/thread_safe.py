"""Matrix products of PyTorch instead of vLLM's kernels, for layers that run beside the engine's steps on CPU.

vLLM (0.32.0) multiplies on CPU by oneDNN with one stream and one scratchpad for the whole process
(`csrc/cpu/dnnl_helper.cpp`). Two threads that multiply at once overwrite each other's intermediate
results: about one product in a hundred was wrong, in the picture or in the step of another request.
"""

from __future__ import annotations

import torch
from torch import nn


@torch.inference_mode()
def use_torch(module: nn.Module) -> None:
    """Let the linear layers in a module multiply by PyTorch, whose products do not share memory.

    Call it from the thread of the engine's steps. vLLM keeps the weights only in the layout of its kernel,
    so they are read by multiplying the unit matrix, which is exact.
    """
    from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod

    for layer in module.modules():
        if not isinstance(layer, LinearBase):
            continue
        unit = torch.eye(layer.input_size, dtype=layer.params_dtype)
        weight = layer.quant_method.apply(layer, unit, None).T.contiguous()
        layer.weight = nn.Parameter(weight.to(layer.params_dtype), requires_grad=False)
        if layer.bias is not None:  # some kernels keep it in float32
            layer.bias.data = layer.bias.data.to(layer.params_dtype)
        layer.quant_method = UnquantizedLinearMethod()
        layer.cpu_linear = nn.functional.linear
