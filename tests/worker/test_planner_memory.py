"""What the planner says about the loss, against the engine's modules and ours with real tensors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flagscale.planner.memory.live import NOTHING, chunk_memory
from flagscale.planner.memory.stage_layers import stage_layers
from flagscale.planner.memory.static import engine_buffers
from flagscale.planner.parameters import stage_parameters
from flagscale.planner.sharding import sharding_of
from flagscale_testing.layer_memory.kept import kept
from flagscale_testing.one_rank import creating_on, one_rank
from megatron.flagscale.layers.norm import Norm
from tests.unit.trainings import shape, training

HIDDEN, VOCABULARY, TOKENS = 64, 4096, 256


class Head(torch.nn.Module):
    """Everything behind the last layer, on one of two ranks."""

    def __init__(self, implementation: str, sequence_parallel: bool) -> None:
        from megatron.core.tensor_parallel.layers import ColumnParallelLinear
        from megatron.core.transformer.transformer_config import TransformerConfig

        super().__init__()
        self.is_ours = implementation == "torch"
        config = TransformerConfig(
            num_layers=1,
            hidden_size=HIDDEN,
            num_attention_heads=4,
            tensor_model_parallel_size=2,
            sequence_parallel=sequence_parallel,
            normalization="RMSNorm",
            params_dtype=torch.bfloat16,
            use_cpu_initialization=True,
        )
        self.norm = Norm(config, HIDDEN)
        zeros = torch.nn.init.zeros_
        self.output = ColumnParallelLinear(HIDDEN, VOCABULARY, config=config, init_method=zeros, bias=False)

    def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:
        from megatron.core.parallel_state import get_tensor_model_parallel_group
        from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

        from megatron.flagscale.layers.loss import cross_entropy

        logits, _ = self.output(self.norm(hidden))
        if self.is_ours:
            return cross_entropy(logits, labels, get_tensor_model_parallel_group())
        return vocab_parallel_cross_entropy(logits, labels)


@pytest.mark.parametrize("sequence_parallel", [False, True])
@pytest.mark.parametrize("implementation", ["local", "torch"])
def test_what_the_loss_keeps(implementation: str, sequence_parallel: bool) -> None:
    model = shape(
        2, hidden=HIDDEN, heads=4, groups=4, head_dim=16, ffn=128, vocabulary=VOCABULARY, attention="mha"
    )
    degrees = {"tp": 2, "sequence": TOKENS, "sequence_parallel": sequence_parallel}
    job = training(model=model, implementation=implementation, **degrees)
    (stage,) = job.layout.stages
    estimate = chunk_memory(job, stage, stage_layers(job, stage), 0, NOTHING).kept
    with one_rank(2, tensor_model_parallel_size=2), creating_on(torch.device("cpu")):
        head = Head(implementation, sequence_parallel)
        labels = torch.zeros(TOKENS, 1, dtype=torch.int64)
        rows = TOKENS // 2 if sequence_parallel else TOKENS
        make = lambda: torch.zeros(rows, 1, HIDDEN, dtype=torch.bfloat16).requires_grad_()  # noqa: E731
        measured = sum(one.nbytes for one in kept(lambda: head(make(), labels), head))
    buffers = dict(engine_buffers(job, stage, stage_parameters(job, stage), sharding_of(job, stage.mesh)))
    expected = estimate["last norm"] + estimate["logits"]
    expected += buffers.get("gathered input of the output layer", 0)
    # Besides, the index of each label, and a mark if it is another rank's, or two figures in float.
    index = 8 + (8 if implementation == "torch" else 1)
    assert measured == expected + index * TOKENS
