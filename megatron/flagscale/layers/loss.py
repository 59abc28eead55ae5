"""Cross entropy over a vocabulary that is split across ranks, written for compilation.

Megatron's own fused loss rounds gradients to bf16. This one computes them in float and returns them in the
precision of the logits. For the backward pass it keeps the logits themselves, not their softmax in float.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.jit import jit_fuser


def use_our_loss(chunks: list[torch.nn.Module]) -> list[torch.nn.Module]:
    """Make Megatron's language models compute their loss here; passed to the engine as a pre-wrap hook."""
    for chunk in chunks:
        group = chunk.pg_collection.tp
        chunk.compute_language_model_loss = functools.partial(_language_model_loss, group)
    return chunks


def _language_model_loss(
    group: dist.ProcessGroup, labels: torch.Tensor, logits: torch.Tensor
) -> torch.Tensor:
    """Return each token's loss `[b, s]` from labels `[b, s]` and this rank's logits `[s, b, v / ranks]`."""
    return cross_entropy(logits, labels.t().contiguous(), group).t().contiguous()


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Return the cross entropy of each token in float, shaped like `labels`.

    `logits [..., v / ranks]` are those of this rank's part of the vocabulary, cut in the order of ranks.
    """
    return _CrossEntropy.apply(logits, labels, group)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, labels: torch.Tensor, group: dist.ProcessGroup
    ) -> torch.Tensor:
        targets = labels - group.rank() * logits.size(-1)
        parts = _lse_and_target(logits, targets)
        if group.size() > 1:
            gathered = parts.new_empty(group.size() * 2, *labels.shape)
            dist.all_gather_into_tensor(gathered, parts, group=group)
            of_rank = gathered.unflatten(0, (-1, 2))
            parts = torch.stack((of_rank[:, 0].logsumexp(0), of_rank[:, 1].sum(0)))
        ctx.save_for_backward(logits, targets, parts[0])
        return parts[0] - parts[1]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _gradient(*ctx.saved_tensors, grads[0]), None, None


@jit_fuser
def _lse_and_target(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the log-sum-exp and the target's logit (0 if it is not in this part), stacked."""
    logits = logits.float()
    found = torch.where(_is_target(logits, targets), logits, 0).sum(-1)
    return torch.stack((logits.logsumexp(-1), found))


@jit_fuser
def _gradient(
    logits: torch.Tensor, targets: torch.Tensor, lse: torch.Tensor, grad: torch.Tensor
) -> torch.Tensor:
    """Return the gradient of the logits: the softmax minus one at the target, times `grad`."""
    softmax = torch.exp(logits.float() - lse.unsqueeze(-1))
    difference = softmax - _is_target(logits, targets).float()
    return (difference * grad.unsqueeze(-1)).to(logits.dtype)


def _is_target(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    # A comparison instead of an index, because it is fused with the operations around it.
    return torch.arange(logits.size(-1), device=logits.device) == targets.unsqueeze(-1)
