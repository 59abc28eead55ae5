"""The experts of one rank as grouped matrix products: one kernel for all instead of one per expert."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP

from megatron.flagscale.layers.activation import activated_product, computes


class BiasedExperts(SequentialMLP):
    """Megatron's experts, one after the other, with biases; each expert is on one tensor parallel rank.

    Megatron-core 0.19.2 (`RowParallelLinear`) reduces the output even then, unless experts are spread over
    ranks, and `MLP` adds the bias to it in place, which autograd refuses. With sequence parallelism, it also
    marks the bias as one whose gradient is summed over the tensor parallel ranks. These hold different
    experts, or the same ones, whose gradients are summed already.
    """

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        for expert in self.local_experts:
            expert.linear_fc2.explicit_expert_comm = True
            expert.linear_fc2.bias.sequence_parallel = False


class GroupedExperts(SequentialMLP):
    """Megatron's experts, with the same weights, names and checkpoints, computed together.

    Takes tokens sorted by expert `[tokens, h]`, their number per expert, and the weight of each token;
    returns `[tokens, h]` and no bias. Biases are not supported, because each expert has its own.
    """

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        fc1, fc2 = self.linears = [
            _GroupedLinear([getattr(expert, name) for expert in self.local_experts])
            for name in ("linear_fc1", "linear_fc2")
        ]
        # An MLP without weights of its own: all that is between the linear layers is still Megatron's.
        self.together = MLP(
            self.config,
            MLPSubmodules(linear_fc1=lambda *_, **__: fc1, linear_fc2=lambda *_, **__: fc2),
            is_expert=True,
            ffn_hidden_size=self.config.moe_ffn_hidden_size,
            tp_group=self.tp_group,
        )

    def parameters(self, recurse: bool = True) -> Iterator[torch.nn.Parameter]:
        """Return the weights of all experts, also as this module's own ones.

        With `overlap_param_gather`, Megatron waits for a module's own weights before its forward pass. The
        one of the experts' linear layers is never called.
        """
        weights: Iterator[torch.nn.Parameter] = super().parameters()
        return weights

    def forward(
        self, tokens: torch.Tensor, tokens_per_expert: torch.Tensor, probabilities: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if self.config.moe_apply_probs_on_input:  # Megatron scales the inputs in its own loop over experts
            outcome: tuple[torch.Tensor, None] = super().forward(tokens, tokens_per_expert, probabilities)
            return outcome
        ends = tokens_per_expert.cumsum(0).to(tokens.device, torch.int32)
        for linear in self.linears:
            linear.ends = ends
        fc1, fc2 = self.linears
        if self.config.bias_activation_fusion and not computes(self.config):
            out, _ = self.together(tokens, probabilities)
        else:
            inputs, _ = fc1(tokens)
            out = activated_product(self.config, inputs, probabilities, _Grouped(ends), *fc2.weights())
        return out, None


class _GroupedLinear(torch.nn.Module):
    """A linear layer of all experts, each on its own rows: those of expert `i` end at `ends[i]`."""

    ends: torch.Tensor

    def __init__(self, layers: list[torch.nn.Module]) -> None:
        super().__init__()
        self.layers = tuple(layers)  # not a ModuleList: the experts own these modules

    def weights(self) -> list[torch.Tensor]:
        return [layer.weight for layer in self.layers]

    def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _GroupedProduct.apply(rows, _Grouped(self.ends), *self.weights()), None


class _GroupedProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, product: _Grouped, *weights: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows, *weights)
        ctx.product = product
        return product.forward(rows, *weights)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        of_rows, of_weights = ctx.product.backward(*grads, *ctx.saved_tensors)
        return of_rows, None, *of_weights


class _Grouped:
    """Rows `[n, k]` times each expert's weight `[m, k]`, transposed: `[n, m]`.

    The kernels take the weights as one tensor. It is built again in the backward pass, so that no second copy
    of all experts is kept in between.
    """

    def __init__(self, ends: torch.Tensor) -> None:
        self.ends = ends

    def forward(self, rows: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        return F.grouped_mm(rows, torch.stack(weights).transpose(1, 2), offs=self.ends)

    def backward(
        self, grad: torch.Tensor, rows: torch.Tensor, *weights: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        grad = grad.contiguous()
        of_rows = F.grouped_mm(grad, torch.stack(weights), offs=self.ends)
        return of_rows, F.grouped_mm(grad.t(), rows, offs=self.ends).unbind()
