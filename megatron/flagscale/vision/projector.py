"""The projector: from features of the tower to embeddings of the language model."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core.tensor_parallel import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig


class Projector(MegatronModule):
    """Two linear layers with a GELU between them, `[..., features' width]` to `[..., width]`.

    `config` is that of the tower: the projector has its precision, and is split as it is.
    """

    def __init__(self, config: TransformerConfig, width: int, group: dist.ProcessGroup) -> None:
        super().__init__(config=config)
        settings = {"config": config, "init_method": config.init_method, "bias": True, "tp_group": group}
        self.linear_fc1 = ColumnParallelLinear(config.hidden_size, width, gather_output=False, **settings)
        self.linear_fc2 = RowParallelLinear(
            width, width, input_is_parallel=True, skip_bias_add=False, **settings
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        hidden, _ = self.linear_fc1(features)
        embeddings, _ = self.linear_fc2(F.gelu(hidden))
        return embeddings
