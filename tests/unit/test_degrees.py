"""Parallel degrees: which layouts fit, and the one message for each that does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from flagscale.checks.degrees import Degrees, degrees, model_size, violations
from flagscale.config.catalog import Catalog
from tests.unit.conftest import TASK

SHORT = {
    "tp": "tensor_model_parallel_size",
    "pp": "pipeline_model_parallel_size",
    "cp": "context_parallel_size",
    "ep": "expert_model_parallel_size",
    "etp": "expert_tensor_parallel_size",
    "vpp": "num_virtual_stages_per_pipeline_rank",
    "chunk": "num_layers_per_virtual_pipeline_stage",
    "layers": "num_layers",
    "heads": "num_attention_heads",
    "groups": "num_query_groups",
    "gqa": "group_query_attention",
    "sp": "sequence_parallel",
    "seq": "seq_length",
    "mbs": "micro_batch_size",
    "gbs": "global_batch_size",
    "experts": "num_experts",
    "topk": "moe_router_topk",
    "ffn": "ffn_hidden_size",
    "moe_ffn": "moe_ffn_hidden_size",
    "shared": "moe_shared_expert_intermediate_size",
    "first": "decoder_first_pipeline_num_layers",
    "last": "decoder_last_pipeline_num_layers",
    "emb": "account_for_embedding_in_pipeline_split",
    "loss": "account_for_loss_in_pipeline_split",
    "layout": "pipeline_model_parallel_layout",
    "heads_of_tokens": "mtp_num_layers",
    "overlap": "overlap_p2p_comm",
    "group": "microbatch_group_size_per_vp_stage",
    "egbs": "eval_global_batch_size",
    "embs": "eval_micro_batch_size",
    "schedule": "step_batch_size_schedule",
    "decrease": "decrease_batch_size_if_needed",
    "types": "cp_comm_type",
    "sizes": "hierarchical_context_parallel_sizes",
}


@pytest.fixture
def defaults(catalog: Catalog) -> dict[str, Any]:
    return {option.dest: option.default for option in catalog.options.values()} | TASK


def values_of(defaults: Mapping[str, Any], short: Mapping[str, Any]) -> dict[str, Any]:
    if "schedule" in short:
        short = {"train_iters": None, "train_samples": 64, **short}
    return {**defaults, **{SHORT.get(name, name): value for name, value in short.items()}}


_ROPE = {"position_embedding_type": "rope"}
GOOD: list[tuple[int, dict[str, Any], str]] = [
    (1, {}, "one rank"),
    (2, {}, "dp2"),
    (8, {"tp": 2, "pp": 2}, "tp2 x pp2 x dp2"),
    (8, {"tp": 2, "pp": 2, "cp": 2}, "tp2 x pp2 x cp2"),
    (4, {"tp": 4, "gqa": True, "groups": 2}, "tp4"),
    (4, {"cp": 4, "types": ["a2a", "p2p", "all_gather", "a2a+p2p"], "sizes": [2, 2]}, "cp4"),
    (2, {"pp": 2, "vpp": 2}, "pp2 x vpp2"),
    (2, {"pp": 2, "chunk": 1}, "pp2 x vpp2"),
    (2, {"pp": 2, "chunk": 2}, "pp2"),
    (2, {"pp": 2, "vpp": 1}, "pp2"),
    (4, {"pp": 4, "vpp": 2, "layers": 8, "overlap": False, "gbs": 8}, "pp4 x vpp2"),
    (2, {"pp": 2, "layers": 6, "emb": True, "loss": True}, "pp2"),
    (2, {"pp": 2, "layers": 4, "first": 1}, "pp2"),
    (4, {"pp": 4, "layers": 8, "first": 1, "last": 3}, "pp4"),
    (4, {"pp": 4, "layout": "Et|tt|t|L"}, "pp4"),
    (4, {"pp": 4, "layout": "E,(t|)*2ttm*2|L", "heads_of_tokens": 2, **_ROPE}, "pp4"),
    (2, {"pp": 2, "layout": "Et*2|t|t|mL", "heads_of_tokens": 1, **_ROPE}, "pp2 x vpp2"),
    (2, {"ep": 2, "experts": 4}, "dp2 x ep2"),
    (4, {"tp": 2, "ep": 2, "etp": 1, "experts": 4, "sp": True}, "tp2 x dp2 x ep2"),
    (1, {"gbs": None}, "one rank"),
    (2, {"schedule": "0:4 1M:8", "gbs": None}, "dp2"),
    (2, {"schedule": "0:4 1K:8", "gbs": None, "train_iters": None, "train_samples": 32}, "dp2"),
    (3, {"gbs": 16, "decrease": True, "egbs": 18}, "dp3"),
    (2, {"egbs": 8}, "dp2"),
    (1, {"sp": True}, "one rank"),
    (2, {"hidden_size": 66, "kv_channels": 16}, "dp2"),
]


@pytest.mark.parametrize(("ranks", "short", "shown"), GOOD)
def test_layouts_that_fit(defaults: dict[str, Any], ranks: int, short: dict[str, Any], shown: str) -> None:
    values = values_of(defaults, short)
    assert list(violations(values, ranks)) == []
    found = degrees(values, ranks)
    assert str(found) == shown
    assert found.world_size == ranks


BAD: list[tuple[int, dict[str, Any], str, str]] = [
    (4, {"tp": 0}, "tensor_model_parallel_size", "at least 1, not 0"),
    (4, {"pp": -2}, "pipeline_model_parallel_size", "at least 1, not -2"),
    (4, {"etp": 0}, "expert_tensor_parallel_size", "at least 1, not 0"),
    (
        6,
        {"tp": 4},
        "tensor_model_parallel_size",
        "= 4 ranks hold one model, which does not divide the job's 6 ranks",
    ),
    (2, {"pp": 4}, "pipeline_model_parallel_size", "does not divide the job's 2 ranks"),
    (8, {"tp": 8}, "num_attention_heads", "num_attention_heads 4 must be a multiple of 8"),
    (1, {"heads": 3}, "hidden_size", "hidden_size 64 must be a multiple of 3 (3 attention heads)"),
    (4, {"tp": 4, "ffn": 130}, "ffn_hidden_size", "must be a multiple of 4"),
    (
        1,
        {"gqa": True, "groups": 3},
        "num_query_groups",
        "num_query_groups 3 must divide num_attention_heads 4",
    ),
    (
        3,
        {"tp": 3, "heads": 6, "hidden_size": 66, "gqa": True, "groups": 2, "gbs": 2},
        "num_query_groups",
        "num_query_groups 2 and tensor_model_parallel_size 3 do not divide each other",
    ),
    (
        2,
        {"cp": 2, "seq": 62},
        "seq_length",
        "seq_length 62 must be a multiple of 4 (2 x context_parallel_size 2)",
    ),
    (
        2,
        {"tp": 2, "sp": True, "seq": 63},
        "seq_length",
        "seq_length 63 must be a multiple of 2 (sequence parallel",
    ),
    (2, {"ep": 2}, "expert_model_parallel_size", "needs num_experts"),
    (1, {"etp": 2}, "expert_tensor_parallel_size", "needs num_experts"),
    (2, {"ep": 2, "experts": 3}, "num_experts", "num_experts 3 must be a multiple of 2"),
    (2, {"ep": 4, "experts": 4}, "expert_model_parallel_size", "= 4 does not divide the job's 2 ranks"),
    (
        2,
        {"tp": 2, "ep": 2, "experts": 4},
        "expert_model_parallel_size",
        "expert tensor 2 x expert 2 x pipeline 1",
    ),
    (2, {"tp": 2, "experts": 4, "moe_ffn": 33}, "moe_ffn_hidden_size", "must be a multiple of 2"),
    (
        2,
        {"tp": 2, "experts": 4, "shared": 33},
        "moe_shared_expert_intermediate_size",
        "must be a multiple of 2",
    ),
    (1, {"experts": 2, "topk": 3}, "moe_router_topk", "moe_router_topk 3 is larger than num_experts 2"),
    (
        3,
        {"pp": 3, "gbs": 2},
        "num_layers",
        "num_layers 4 must be a multiple of 3 (pipeline_model_parallel_size 3)",
    ),
    (
        2,
        {"pp": 2, "vpp": 3},
        "num_layers",
        "must be a multiple of 6 (pipeline_model_parallel_size 2 x 3 chunks per stage)",
    ),
    (
        2,
        {"pp": 2, "chunk": 3},
        "num_layers",
        "must be a multiple of 6 (pipeline_model_parallel_size 2 x 3 layers per chunk)",
    ),
    (2, {"pp": 2, "emb": True}, "num_layers", "num_layers 4 (counted as 5) must be a multiple of 2"),
    (2, {"pp": 2, "chunk": 0}, "num_layers_per_virtual_pipeline_stage", "at least 1, not 0"),
    (1, {"vpp": 2}, "num_virtual_stages_per_pipeline_rank", "needs pipeline_model_parallel_size > 1"),
    (1, {"chunk": 2}, "num_layers_per_virtual_pipeline_stage", "needs pipeline_model_parallel_size > 1"),
    (
        2,
        {"pp": 2, "vpp": 2, "overlap": False},
        "num_virtual_stages_per_pipeline_rank",
        "needs overlap_p2p_comm: true",
    ),
    (2, {"pp": 2, "vpp": 2, "chunk": 1}, "num_virtual_stages_per_pipeline_rank", "cannot be combined"),
    (2, {"pp": 2, "first": 1, "loss": True}, "account_for_loss_in_pipeline_split", "cannot be combined"),
    (2, {"pp": 2, "first": 2, "chunk": 1}, "decoder_first_pipeline_num_layers", "cannot be combined"),
    (
        2,
        {"pp": 2, "first": 1, "layout": "Et|tttL"},
        "decoder_first_pipeline_num_layers",
        "cannot be combined",
    ),
    *(
        (2, {"pp": 2, "layout": layout, "heads_of_tokens": 1}, "pipeline_model_parallel_layout", says)
        for layout, says in (
            ("Ett|ttml", "has an unknown letter 'l': use E, t, m, L"),
            ("Ett|tt|mL", "has 3 parts, not a multiple of pipeline_model_parallel_size 2"),
            ("tt|ttmL", "must begin with its only E (embedding) and end with its only L (loss)"),
            ("Et|ttmL", "has 3 layers (t), but num_layers is 4"),
            ("Ett|ttL", "has 0 prediction heads (m), but mtp_num_layers is 1"),
            ("Ettt|mtL", "in one of the last 2 parts, after all layers"),
            ("Ett|ttm||L", "in one of the last 2 parts, after all layers"),
        )
    ),
    (2, {"pp": 2, "layout": "Ett|ttmL"}, "pipeline_model_parallel_layout", "but mtp_num_layers is 0"),
    (2, {"pp": 2, "first": 0}, "decoder_first_pipeline_num_layers", "must be a multiple of 1 and at least 1"),
    (2, {"pp": 2, "first": 4}, "decoder_first_pipeline_num_layers", "0 layers cannot fill 1 stages"),
    (
        2,
        {"pp": 2, "first": 1, "last": 2},
        "decoder_first_pipeline_num_layers",
        "1 layers cannot fill 0 stages",
    ),
    (4, {"pp": 4, "first": 1}, "decoder_first_pipeline_num_layers", "layers cannot fill 3 stages"),
    (1, {"mbs": None}, "micro_batch_size", "is required"),
    (1, {"mbs": 0}, "micro_batch_size", "is required"),
    (4, {"gbs": 12}, "global_batch_size", "must be a multiple of 8 (micro_batch_size 2 x data parallel 4)"),
    (1, {"gbs": 0}, "global_batch_size", "global_batch_size 0 must be a multiple of 2"),
    (
        2,
        {"pp": 2, "vpp": 2, "gbs": 6},
        "global_batch_size",
        "needs a multiple of 2 micro-batches per step, not 3",
    ),
    (2, {"pp": 2, "vpp": 2, "gbs": 2}, "global_batch_size", "not 1"),
    (2, {"pp": 2, "vpp": 2, "gbs": 8, "group": 1}, "global_batch_size", "micro-batches"),
    (2, {"schedule": "0:4"}, "global_batch_size", "not both"),
    (2, {"schedule": "0:4 1M:6", "gbs": None}, "step_batch_size_schedule", "multiples of 4 "),
    (
        2,
        {"schedule": "0:4", "gbs": None, "train_samples": 41},
        "train_samples",
        "40 or 44",
    ),
    (
        2,
        {"schedule": "0:4", "gbs": None, "train_iters": 10, "train_samples": None},
        "train_iters",
        "needs `train_samples`: the engine prepares 4 samples per step of `train_iters`",
    ),
    (2, {"schedule": "4", "gbs": None}, "step_batch_size_schedule", "`4` is not TOKENS:BATCH"),
    (2, {"schedule": f"0:4 {'9' * 400}:8", "gbs": None}, "step_batch_size_schedule", "is not TOKENS:BATCH"),
    (2, {"schedule": "999:4", "gbs": None}, "step_batch_size_schedule", "must begin at 0 tokens"),
    (2, {"schedule": "0:4 9:8", "gbs": None}, "step_batch_size_schedule", "begin at the same sample"),
    (2, {"schedule": "0:0", "gbs": None}, "step_batch_size_schedule", "must be at least 1"),
    (2, {"schedule": "0:4", "gbs": None, "egbs": 6}, "eval_global_batch_size", "must be a multiple of 4"),
    (
        2,
        {"schedule": "0:4", "gbs": None, "decrease": True},
        "decrease_batch_size_if_needed",
        "cannot be combined",
    ),
    (2, {"egbs": 6}, "eval_global_batch_size", "evaluation step of 6 samples must be a multiple of 4"),
    (
        3,
        {"decrease": True},
        "eval_global_batch_size",
        "evaluation step of 16 samples must be a multiple of 6",
    ),
    (2, {"embs": 3}, "eval_micro_batch_size", "evaluation step of 16 samples must be a multiple of 6"),
]


@pytest.mark.parametrize(("ranks", "short", "blamed", "says"), BAD)
def test_layouts_that_do_not_fit(
    defaults: dict[str, Any], ranks: int, short: dict[str, Any], blamed: str, says: str
) -> None:
    values = values_of(defaults, short)
    if blamed == "decoder_first_pipeline_num_layers" and "3 stages" in says:
        values["num_layers"] = 6
    found = list(violations(values, ranks))
    assert [name for name, _ in found] == [blamed], found
    assert says in found[0][1]


def test_every_broken_rule_is_reported(defaults: dict[str, Any]) -> None:
    values = values_of(
        defaults, {"tp": 2, "pp": 3, "heads": 3, "hidden_size": 65, "gbs": 1, "cp": 1, "experts": 3, "ep": 2}
    )
    assert {name for name, _ in violations(values, 6)} == {
        "num_attention_heads",
        "hidden_size",
        "num_layers",
        "num_experts",
        "expert_model_parallel_size",
        "global_batch_size",
    }


SIZES = st.sampled_from([1, 2, 3, 4, 8])


@given(tp=SIZES, pp=SIZES, cp=SIZES, dp=SIZES)
def test_degrees_multiply_to_the_world_size(tp: int, pp: int, cp: int, dp: int) -> None:
    values = {
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "context_parallel_size": cp,
        "expert_model_parallel_size": 1,
        "expert_tensor_parallel_size": None,
        "num_layers": 2 * pp,
        "hidden_size": 16 * tp,
        "num_attention_heads": tp,
        "seq_length": 2 * cp,
        "micro_batch_size": 3,
        "global_batch_size": 3 * dp * 2,
    }
    world = tp * pp * cp * dp
    assert list(violations(values, world)) == []
    found = degrees(values, world)
    assert found == Degrees(tp=tp, pp=pp, cp=cp, dp=dp, etp=tp)
    assert found.world_size == world
    assert model_size(values) * found.dp == world


@given(tp=SIZES, pp=SIZES, cp=SIZES, world=st.integers(1, 64))
def test_a_world_size_that_the_model_does_not_divide_is_reported_alone(
    tp: int, pp: int, cp: int, world: int
) -> None:
    assume(world % (tp * pp * cp))
    values = {
        "tensor_model_parallel_size": tp,
        "pipeline_model_parallel_size": pp,
        "context_parallel_size": cp,
        "expert_model_parallel_size": 1,
        "expert_tensor_parallel_size": None,
    }
    ((blamed, what),) = violations(values, world)
    assert values[blamed] == max(tp, pp, cp)
    assert f"{world} ranks" in what
