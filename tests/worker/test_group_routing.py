"""Groups of experts are compared as transformers' DeepSeek models compare them."""

from __future__ import annotations

import inspect

import torch

from megatron.flagscale.group_routing import group_limited

EXPERTS, GROUPS = 16, 4


def chosen(name: str, topk: int, of: int, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights and experts of transformers' router for scores `[tokens, experts]`, by expert."""
    import transformers
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

    sizes = {
        "hidden_size": EXPERTS,
        "num_attention_heads": 4,
        "n_routed_experts": EXPERTS,
        "num_experts_per_tok": topk,
    }
    groups = {"n_group": GROUPS, "topk_group": of, "routed_scaling_factor": 1.0}
    config = getattr(transformers, f"Deepseek{name}Config")(
        **sizes, **groups, norm_topk_prob=False, topk_method="group_limited_greedy"
    )
    router = (DeepseekV2TopkRouter if name == "V2" else DeepseekV3TopkRouter)(config)
    router.weight.data = torch.eye(EXPERTS)  # the hidden state of a token is its logits
    _, weights, experts = router(scores)
    order = experts.argsort(-1)
    return weights.gather(1, order), experts.gather(1, order)


def test_the_groups_of_deepseek_v2_are_those_with_the_best_expert() -> None:
    logits = torch.randn(200, EXPERTS, generator=torch.Generator().manual_seed(0))
    weights, experts = chosen("V2", 6, 2, logits)
    found, ours = group_limited(logits.softmax(-1), 6, GROUPS, 2, best=1)
    order = ours.argsort(-1)
    assert torch.equal(ours.gather(1, order), experts)
    assert torch.equal(found.gather(1, order), weights)
    _, others = group_limited(logits.softmax(-1), 6, GROUPS, 2, best=3)  # what Megatron computes
    assert not torch.equal(others.sort(-1).values, experts)


def test_the_groups_of_deepseek_v3_are_those_with_the_two_best_experts() -> None:
    logits = torch.randn(200, EXPERTS, generator=torch.Generator().manual_seed(0))
    weights, experts = chosen("V3", 6, 2, logits)
    found, ours = group_limited(logits.sigmoid(), 6, GROUPS, 2, best=2)
    order = ours.argsort(-1)
    assert torch.equal(ours.gather(1, order), experts)
    assert torch.equal(found.gather(1, order), weights)


def test_megatrons_own_choice_is_a_number_of_best_scores() -> None:
    from megatron.core.transformer.moe.moe_utils import group_limited_topk

    scores = torch.rand(200, EXPERTS, generator=torch.Generator().manual_seed(0))
    own = inspect.unwrap(group_limited_topk)(scores, 6, 200, EXPERTS, GROUPS, 2)
    assert all(map(torch.equal, own, group_limited(scores, 6, GROUPS, 2, best=3)))
