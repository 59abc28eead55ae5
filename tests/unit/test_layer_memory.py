"""The planner's reader of kept bytes: plain arithmetic on the checked-in table."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.layer_memory import main
from flagscale.errors import UserError
from flagscale.planner.memory.layer_memory import (
    FULL,
    LayerKind,
    amount,
    kept_bytes,
    kept_parts,
    layer_table,
    names,
)
from flagscale_testing.layer_memory.sides import ROOT, tree_of
from flagscale_testing.layer_memory.table import entries

LLAMA_70B: dict[str, Any] = {
    "hidden_size": 8192,
    "ffn_hidden_size": 28672,
    "num_attention_heads": 64,
    "num_query_groups": 8,
    "kv_channels": 128,
    "seq_length": 4096,
    "micro_batch_size": 1,
    "tensor_model_parallel_size": 2,
}
TORCH = LayerKind("torch", "gqa", "dense", sequence_parallel=True)
LOCAL = LayerKind("local", "gqa", "dense")
MIB = 2**20


def mistakes(kind: LayerKind, sizes: dict[str, Any]) -> list[str]:
    with pytest.raises(UserError) as error:
        kept_bytes(kind, sizes)
    return list(error.value.messages)


def test_a_layer_keeps_what_its_page_shows() -> None:
    # Norms 2 x 32, inputs of linear layers 2 x 32, q k v and output 144, log-sum-exp 0.5, SwiGLU 224; and two
    # statistics of norms in float.
    assert kept_bytes(TORCH, LLAMA_70B) == 424.5 * MIB + 2 * 4096 // 2 * 4


def test_parts_are_the_whole() -> None:
    parts = kept_parts(TORCH, LLAMA_70B)
    assert sum(part.nbytes for part in parts) == kept_bytes(TORCH, LLAMA_70B)
    assert {"self_attention.core_attention", "mlp.linear_fc1"} <= {part.module for part in parts}


def test_a_term_is_a_product_over_degrees() -> None:
    sizes = {"tokens": 6, "hidden_size": 5, "tensor_model_parallel_size": 4}
    assert names("tokens*hidden_size/tensor_model_parallel_size") == [*sizes]
    assert amount("tokens*hidden_size/tensor_model_parallel_size", 2, sizes) == 15
    assert amount("tokens/tensor_model_parallel_size", 1, sizes) == 2  # rounded up


@pytest.mark.parametrize("kind", [replace(TORCH, sequence_parallel=False), LOCAL], ids=["torch", "local"])
def test_bytes_grow_with_the_batch_and_shrink_with_ranks(kind: LayerKind) -> None:
    one = kept_bytes(kind, LLAMA_70B)
    more = kept_bytes(kind, LLAMA_70B | {"micro_batch_size": 3})
    assert 2.9 * one < more <= 3 * one  # tables of positions do not grow
    assert kept_bytes(kind, LLAMA_70B | {"tensor_model_parallel_size": 8}) < one


@pytest.mark.parametrize(
    ("implementation", "modules"),
    [
        ("torch", ("mlp",)),
        ("torch", (FULL,)),
        ("torch", ("core_attn", "mlp")),
        ("local", ("core_attn",)),
    ],
)
def test_recomputation_keeps_less(implementation: str, modules: tuple[str, ...]) -> None:
    kind = LOCAL if implementation == "local" else TORCH
    assert kept_bytes(replace(kind, recompute=modules), LLAMA_70B) < kept_bytes(kind, LLAMA_70B)


def test_full_recomputation_keeps_the_input_only() -> None:
    kind = replace(TORCH, recompute=(FULL,), options=("dropout", "layer_norm"))
    assert kept_bytes(kind, LLAMA_70B) == 4096 * 8192 * 2 // 2


def test_the_order_of_modules_does_not_matter() -> None:
    there, back = ("core_attn", "mlp", "layernorm"), ("layernorm", "mlp", "core_attn")
    assert kept_parts(replace(TORCH, recompute=there), LLAMA_70B) == kept_parts(
        replace(TORCH, recompute=back), LLAMA_70B
    )


def test_modules_of_other_layers_change_nothing() -> None:
    # A model has dense layers and layers with experts; its list of modules is for both.
    both = replace(TORCH, recompute=("mlp", "moe"))
    assert kept_bytes(both, LLAMA_70B) == kept_bytes(replace(TORCH, recompute=("mlp",)), LLAMA_70B)


def test_half_precisions_keep_the_same() -> None:
    assert kept_bytes(replace(TORCH, dtype="float16"), LLAMA_70B) == kept_bytes(TORCH, LLAMA_70B)
    assert kept_bytes(replace(TORCH, dtype="float32"), LLAMA_70B) > kept_bytes(TORCH, LLAMA_70B)


def test_experts_are_cut_as_the_engine_does_by_default() -> None:
    sizes = LLAMA_70B | {"num_experts": 8, "moe_router_topk": 2, "moe_ffn_hidden_size": 1024}
    kind = replace(TORCH, mlp="moe")
    whole = kept_bytes(kind, sizes | {"expert_tensor_parallel_size": 1})
    assert kept_bytes(kind, sizes) == kept_bytes(kind, sizes | {"expert_tensor_parallel_size": 2}) > whole


def test_all_unknown_kinds_are_reported_at_once() -> None:
    kind = LayerKind("torhc", "gqua", "dens", dtype="bflaot16", recompute=("core_atn", "mlp"))
    assert mistakes(kind, LLAMA_70B) == [
        "transformer_impl: the table of kept bytes has no implementation `torhc`\n    did you mean `torch`?",
        "transformer_impl: the table of kept bytes has no attention `gqua`\n    did you mean `gqa`?",
        "the table of kept bytes has no dtype `bflaot16`\n    did you mean `bfloat16`?",
        "recompute_modules: the table of kept bytes has no recomputed module `core_atn`\n"
        "    did you mean `core_attn`?",
        "the table of kept bytes has no mlp `dens`\n    did you mean `dense`?",
    ]


def test_all_missing_sizes_are_reported_at_once() -> None:
    sizes = {name: size for name, size in LLAMA_70B.items() if name not in ("kv_channels", "seq_length")}
    assert [message.split(":")[0] for message in mistakes(TORCH, sizes)] == [
        "`kv_channels` is missing",
        "`seq_length` is missing",
    ]


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (replace(TORCH, implementation="local"), "has no parallelism `sequence`"),
        (replace(TORCH, implementation="local", attention="mla"), "has no attention `mla`"),
        (replace(TORCH, mlp="moe", sequence_parallel=False), "has no parallelism `tensor`"),
        (replace(TORCH, implementation="transformer_engine"), "has no implementation `transformer_engine`"),
        (replace(TORCH, dtype="float32", recompute=("mlp",)), "layers in float32 with `recompute mlp`"),
        (replace(TORCH, recompute=(FULL, "mlp")), "has no combination of recomputed modules `full+mlp`"),
    ],
)
def test_what_was_not_measured_is_refused(kind: LayerKind, message: str) -> None:
    sizes = LLAMA_70B | {"num_experts": 8, "moe_router_topk": 2, "moe_ffn_hidden_size": 1024}
    assert message in "\n".join(mistakes(kind, sizes))


def test_layers_that_keep_other_tensors_are_refused() -> None:
    sizes = LLAMA_70B | {"context_parallel_size": 2}
    kind = replace(TORCH, attention="mha", options=("attention_dropout",))
    assert [message.partition(" with ")[2] for message in mistakes(kind, sizes)] == [
        "`context_parallel_size` above 1 and `attention_dropout`: ranks then gather all keys",
        "8 groups for 64 heads that are `mha`: this is `gqa`",
    ]
    assert "`context_parallel_size` above 1" in mistakes(LOCAL, sizes)[0]
    alone = LLAMA_70B | {"num_query_groups": 2}
    assert "one group of keys per rank" in mistakes(replace(LOCAL, options=("unrotated",)), alone)[0]


def test_context_parallel_ranks_keep_their_share_of_the_tokens() -> None:
    shared = LLAMA_70B | {"context_parallel_size": 4}
    assert kept_bytes(TORCH, shared) == kept_bytes(TORCH, LLAMA_70B | {"seq_length": 1024})
    # The output of attention is kept before and after the exchange of heads.
    more = kept_bytes(replace(TORCH, options=("a2a",)), shared) - kept_bytes(TORCH, shared)
    assert more == 1024 * 8192 // 2 * 2


def test_a_rank_has_one_group_of_keys_at_least() -> None:
    few, exact = ({**LLAMA_70B, "num_query_groups": n, "tensor_model_parallel_size": 8} for n in (2, 8))
    assert kept_bytes(TORCH, few) == kept_bytes(TORCH, exact)


def test_unknown_options_are_refused() -> None:
    assert mistakes(replace(TORCH, options=("drop_out", "qk_norm")), LLAMA_70B) == [
        "the table of kept bytes has no option `drop_out`\n    did you mean `dropout`?"
    ]
    assert mistakes(replace(LOCAL, options=("a2a",)), LLAMA_70B) == [
        "cp_comm_type: the table of kept bytes has no `local` layers in bfloat16 with `a2a`"
    ]


def test_options_of_other_layers_change_nothing() -> None:
    # A model's options are for its dense layers and for those with experts.
    kind = replace(TORCH, options=("aux_loss", "grouped"))
    assert kept_bytes(kind, LLAMA_70B) == kept_bytes(TORCH, LLAMA_70B)


def test_experts_cut_over_more_ranks_than_the_layer_are_refused() -> None:
    sizes = LLAMA_70B | {"num_experts": 8, "moe_router_topk": 2, "moe_ffn_hidden_size": 1024}
    kind = replace(TORCH, mlp="moe")
    assert mistakes(kind, sizes | {"tensor_model_parallel_size": 1, "expert_tensor_parallel_size": 2}) == [
        "expert_tensor_parallel_size: the table of kept bytes has no layers with "
        "`expert_tensor_parallel_size` that does not divide "
        "`tensor_model_parallel_size`: ranks then gather tokens of other batches"
    ]
    assert kept_bytes(TORCH, LLAMA_70B | {"expert_tensor_parallel_size": 4}) == kept_bytes(TORCH, LLAMA_70B)


def test_null_is_the_same_as_absent() -> None:
    optional = {"q_lora_rank": None, "num_experts": None, "context_parallel_size": None}
    assert kept_bytes(TORCH, LLAMA_70B | optional) == kept_bytes(TORCH, LLAMA_70B)
    assert mistakes(TORCH, LLAMA_70B | {"kv_channels": None}) == [
        "`kv_channels` is missing: the layer keeps tensors of that size"
    ]


def test_sizes_that_are_none_are_reported_at_once() -> None:
    sizes = LLAMA_70B | {"tensor_model_parallel_size": 0, "hidden_size": -8, "seq_length": "4096"}
    assert mistakes(TORCH, sizes) == [
        "`hidden_size` is -8, not a positive whole number",
        "`seq_length` is '4096', not a positive whole number",
        "`tensor_model_parallel_size` is 0, not a positive whole number",
    ]


def test_measured_layers_differ_in_every_size() -> None:
    """Otherwise, the term of a size could be mistaken for a constant."""
    for one in entries():
        sizes = [case.sizes for case in one.cases]
        same = [name for name in sizes[0] if len({size[name] for size in sizes}) == 1]
        assert all(name.endswith("_parallel_size") for name in same), one


def test_every_term_of_the_table_can_be_evaluated() -> None:
    found = {term for one in layer_table()["modules"] for terms in one.values() for term in terms}
    assert "tokens*hidden_size/tensor_model_parallel_size" in found
    assert all(amount(term, 1, dict.fromkeys(names(term), 2)) >= 1 for term in found)


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (
            ["--model", "llama-70b", "--model", "deepsek-v3", "--tp", "0", "--against", "no-such-commit"],
            [
                "--model: no such model: llama-70b\n    did you mean `llama3-70b`?",
                "--model: no such model: deepsek-v3\n    did you mean `deepseek-v3`?",
                "--tp: must be between 1 and 4194304, not 0",
                "--against: no such commit: no-such-commit",
            ],
        ),
        (["--tp", "3"], ["num_attention_heads 64 must be a multiple of 3", "4096 tokens are no multiple"]),
        (["--tp", "6"], ["num_query_groups 8 and tensor_model_parallel_size 6 do not divide each other"]),
        (["--model", "deepseek-v3", "--tp", "256"], ["num_attention_heads 128 must be a multiple of 256"]),
        (["--write", "--model", "llama3-70b"], ["--write: it measures everything that the page shows"]),
        (["--write", "--tp", "4"], ["--write: it measures everything that the page shows"]),
    ],
)
def test_the_command_reports_all_mistakes_at_once(
    arguments: list[str], messages: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert [message for message in messages if message not in printed.err] == []


def test_another_commit_leaves_nothing_for_git_to_list() -> None:
    with tree_of("HEAD") as tree:
        assert (tree / "megatron" / "flagscale" / "layers" / "spec.py").is_file()
        listed = subprocess.run(["git", "worktree", "list"], cwd=ROOT, capture_output=True, text=True)
        assert listed.returncode == 0
        assert str(tree) not in listed.stdout
    assert not tree.exists()
