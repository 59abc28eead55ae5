"""Checkpoints of adapters, and the base that they need.

A checkpoint holds the adapters by their names in the whole model, for example
`decoder.layers.3.self_attention.linear_qkv.adapters.q_proj.b.weight`, each as one matrix with its rows in the
order of Hugging Face, whatever the layout.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def load_base(folder: Path, chunks: list[torch.nn.Module], strictness: str) -> None:
    """Load a checkpoint's weights into the chunks of a model that has no adapters yet; on all ranks."""
    from megatron.core import dist_checkpointing, mpu

    metadata = dist_checkpointing.load_content_metadata(str(folder)) or {}
    metadata["dp_cp_group"] = mpu.get_data_parallel_group(with_context_parallel=True)
    wanted = {f"model{index}": one.sharded_state_dict(metadata=metadata) for index, one in enumerate(chunks)}
    loaded = dist_checkpointing.load(wanted, str(folder), strict=strictness)
    for index, chunk in enumerate(chunks):
        chunk.load_state_dict(loaded[f"model{index}"])


def adapter_state(
    chunk: torch.nn.Module, prefix: str = "", sharded_offsets: tuple[Any, ...] = (), metadata: Any = None
) -> dict[str, Any]:
    """Return the sharded tensors of a chunk's adapters, by the names of the parameters in the chunk.

    Like `MegatronModule.sharded_state_dict`, which it replaces; `prefix` and `sharded_offsets` are of modules
    inside others, and not used for a whole chunk.
    """
    from megatron.core import mpu
    from megatron.core.utils import make_sharded_tensor_for_checkpoint as whole
    from megatron.core.utils import make_tp_sharded_tensor_for_checkpoint as cut

    from megatron.flagscale.initialization import global_name
    from megatron.flagscale.lora.layer import Adapters

    found = {}
    for name, module in chunk.named_modules():
        if not isinstance(module, Adapters):
            continue
        copies = (
            mpu.get_expert_data_parallel_group()
            if module.is_expert
            else mpu.get_data_parallel_group(with_context_parallel=True)
        )
        groups = {"tp_group": module.tp_group, "dp_cp_group": copies}
        for local, parameter in module.named_parameters(name):
            key = global_name(local, chunk)
            if getattr(parameter, "tensor_model_parallel", False):
                found[local] = cut(parameter, key, parameter.partition_dim, **groups)
            else:
                found[local] = whole(parameter, key, **groups)
    return found
