"""What layers keep: the measurement against real tensors, and the planner's table against today's layers."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from flagscale.planner.memory.layer_memory import kept_bytes
from flagscale_testing.layer_memory.cases import FULL, LAYERS, Case, Kept, cases_of
from flagscale_testing.layer_memory.kept import kept
from flagscale_testing.layer_memory.layer import measure
from flagscale_testing.layer_memory.table import entry, fit, kind_of
from flagscale_testing.layer_memory.terms import fitted
from megatron.flagscale.layers.norm import Norm

CPU = torch.device("cpu")
BATCH = {"seq_length": 40, "micro_batch_size": 3, "expert_tensor_parallel_size": 1}
PLAIN = {"hidden_size": 56, "num_attention_heads": 4, "num_query_groups": 4, "kv_channels": 8}
GROUPED = {"hidden_size": 56, "num_attention_heads": 12, "num_query_groups": 4, "kv_channels": 8}
FEW = {**GROUPED, "num_query_groups": 2}
LATENT = {
    "hidden_size": 48,
    "num_attention_heads": 4,
    "q_lora_rank": 40,
    "kv_lora_rank": 24,
    "qk_head_dim": 16,
    "qk_pos_emb_head_dim": 16,
    "v_head_dim": 32,
}
DENSE = {"ffn_hidden_size": 88}
EXPERTS = {"num_experts": 4, "moe_router_topk": 3, "moe_ffn_hidden_size": 96}
SHARED = {**EXPERTS, "moe_shared_expert_intermediate_size": 24}
DIRECT = {name: size for name, size in LATENT.items() if name != "q_lora_rank"}
TP2 = {"tensor_model_parallel_size": 2}
CP2 = {"context_parallel_size": 2}


def total(rows: list[Kept]) -> int:
    return sum(row.nbytes for row in rows)


@pytest.mark.parametrize(
    "case",
    [
        Case({**BATCH, **GROUPED, **DENSE, **TP2}, "torch", sequence_parallel=True),
        Case({**BATCH, **GROUPED, **DENSE}, "torch", dtype="float32", recompute=("core_attn",)),
        Case({**BATCH, **GROUPED, **DENSE, **TP2}, "local", recompute=("mlp",)),
        Case({**BATCH, **LATENT, **DENSE}, "torch"),
        Case({**BATCH, **DIRECT, **DENSE, **CP2}, "torch"),
        Case({**BATCH, **GROUPED, **DENSE, **CP2, **TP2}, "torch", True, options=("a2a", "qk_norm")),
        Case({**BATCH, **FEW, **DENSE, "tensor_model_parallel_size": 4}, "torch", options=("ungated",)),
    ],
    ids=[
        *("grouped, SP", "attention recomputed", "local, MLP recomputed", "latent"),
        *("latent, CP", "heads exchanged", "fewer groups than ranks"),
    ],
)
def test_meta_tensors_keep_what_real_tensors_keep(case: Case) -> None:
    assert total(measure(case)) == total(measure(case, CPU))


@pytest.mark.parametrize(
    "case",
    [
        *cases_of("llama3-70b", 2, 4096),
        Case({**LAYERS["llama3-70b"], **BATCH, "tensor_model_parallel_size": 8}, "torch", True),
        Case({**BATCH, **GROUPED, **DENSE, **TP2}, "torch", recompute=("layernorm", "core_attn", "mlp")),
        Case({**BATCH, **LATENT, **DENSE, **TP2}, "torch", True, "bfloat16", ("mla_up_proj",)),
        Case({**BATCH, **LATENT, **DENSE, **TP2}, "torch"),
        Case({**BATCH, **LATENT, **SHARED}, "torch", recompute=("shared_experts",)),
        Case({**BATCH, **GROUPED, **EXPERTS, **TP2}, "torch", sequence_parallel=True),
        Case(
            {
                **BATCH,
                **GROUPED,
                **EXPERTS,
                "tensor_model_parallel_size": 4,
                "expert_tensor_parallel_size": 2,
            },
            sequence_parallel=True,
        ),
        # Biases of experts change nothing in this precision, but are known.
        Case({**BATCH, **LATENT, **SHARED}, "torch", dtype="float32", options=("expert_bias", "sigmoid")),
        Case({**BATCH, **GROUPED, **EXPERTS}, "local", recompute=FULL),
        Case({**BATCH, **PLAIN, **DENSE}, "local"),
    ],
    ids=lambda case: f"{case.implementation} {'+'.join(case.recompute)}",
)
def test_the_table_has_what_the_layers_keep(case: Case) -> None:
    """If it does not: `make layer-memory`, and look at the difference."""
    assert kept_bytes(kind_of(case), case.sizes) == total(measure(case))


@pytest.mark.parametrize(
    "seed", [*range(40), *(pytest.param(n, marks=pytest.mark.slow) for n in range(40, 600))]
)
def test_the_table_has_what_random_layers_keep(seed: int) -> None:
    case = random_case(random.Random(seed))
    assert kept_bytes(kind_of(case), case.sizes) == total(measure(case)), case


def random_case(draw: random.Random) -> Case:
    """Return a layer with any options that the engine accepts together."""
    implementation = draw.choice(("torch", "torch", "local"))
    is_local = implementation == "local"
    attention = draw.choice((PLAIN, GROUPED) if is_local else (PLAIN, GROUPED, LATENT, DIRECT))
    mlp = draw.choice((DENSE, EXPERTS, SHARED))
    tp = 1 if is_local and mlp is not DENSE else draw.choice((1, 2, 4))
    in_sequence = not is_local and tp > 1 and (mlp is not DENSE or draw.random() < 0.5)
    cp = 1 if is_local else draw.choice((1, 1, 2, 4))
    etp = tp if mlp is not DENSE and draw.random() < 0.5 else 1
    options = {one for one in (*_OPTIONS, *(_OF_EXPERTS if mlp is not DENSE else ())) if draw.random() < 0.3}
    if attention not in (PLAIN, GROUPED):
        options -= {"qk_norm", "unrotated"}
    if is_local and attention is GROUPED and tp == 4:  # one group per rank
        options -= {"qk_norm", "unrotated"}
    if cp > 1:
        options -= {"attention_dropout"}
        options |= {"a2a"} if draw.random() < 0.5 else set()
    if mlp is not SHARED:
        options -= {"shared_gate"}
    if "sigmoid" not in options:
        options -= {"expert_bias"}
    if mlp is not DENSE and draw.random() < 0.5:
        options.add(draw.choice(("aux_loss", "seq_aux_loss", "global_aux_loss")))
    if etp > 1:
        options -= {"on_cpu"}
    exchange = draw.choice([size for size in (2, 4) if size <= cp]) if "a2a" in options else 1
    modules = ["layernorm", "core_attn", "mlp", *(["moe", "shared_experts"] if mlp is SHARED else [])]
    modules += ["mla_up_proj"] if attention in (LATENT, DIRECT) else []
    again = tuple(one for one in modules if draw.random() < 0.2)
    return Case(
        {
            **BATCH,
            "seq_length": 80,
            "micro_batch_size": draw.choice((1, 3)),
            **attention,
            **mlp,
            "num_attention_heads": 4 * attention["num_attention_heads"],
            **({"num_query_groups": 16} if attention is PLAIN else {}),
            "tensor_model_parallel_size": tp,
            "context_parallel_size": cp,
            "exchange_parallel_size": exchange,
            "expert_tensor_parallel_size": etp,
        },
        implementation,
        in_sequence,
        "bfloat16",
        again,
        tuple(sorted(options)),
    )


_OPTIONS = ("layer_norm", "qk_norm", "dropout", "attention_dropout", "unrotated", "ungated", "on_cpu")
_OF_EXPERTS = ("grouped", "sigmoid", "expert_bias", "router_fp32", "shared_gate")


@pytest.mark.parametrize("module", ["core_attn", "layernorm", "mlp", "mla_up_proj"])
@pytest.mark.parametrize("model", ["llama3-70b", "deepseek-v3"])
def test_a_layer_never_keeps_more_because_it_recomputes(model: str, module: str) -> None:
    """A checkpoint keeps its inputs: a part of a tensor must not hold the rest."""
    if module == "mla_up_proj" and model == "llama3-70b":
        pytest.skip("it has no latents")
    (case, *_) = cases_of(model, 2, 4096)
    assert total(measure(replace(case, recompute=(module,)))) < total(measure(case))


def test_recomputed_latents_do_not_hold_what_they_were_split_from() -> None:
    (case, *_) = cases_of("deepseek-v3", 2, 4096)
    rows = measure(replace(case, recompute=("mla_up_proj",)))
    rotary = [row for row in rows if row.shape == (4096, 1, case.sizes["qk_pos_emb_head_dim"])]
    assert [row.nbytes for row in rotary] == [4096 * case.sizes["qk_pos_emb_head_dim"] * 2]


def test_layers_share_the_angles_of_latent_attention() -> None:
    """If all of a layer is computed again, its input is all that it keeps."""
    (case, *_) = cases_of("deepseek-v3", 2, 4096)
    (row,) = measure(replace(case, recompute=FULL))
    assert row.shape == (2048, 1, case.sizes["hidden_size"])


def test_a_layer_that_keeps_more_no_longer_equals_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    normal = Norm.forward

    def greedy(self: Norm, hidden: torch.Tensor) -> torch.Tensor:
        out = normal(self, hidden)
        self.last = out.float()  # an attribute, which autograd knows nothing of
        return out

    monkeypatch.setattr(Norm, "forward", greedy)
    (case, *_) = cases_of("llama3-70b", 2, 4096)
    more = total(measure(case)) - kept_bytes(kind_of(case), case.sizes)
    assert more == 2 * 4096 // 2 * 8192 * 4


def test_everything_that_stays_alive_counts_once() -> None:
    layer = torch.nn.Linear(8, 8)
    table = torch.ones(8)
    hidden = torch.ones(4, 8, requires_grad=True)
    remembered: list[torch.Tensor] = []

    def run() -> torch.Tensor:
        inner = layer(hidden * table)  # saves the table, which existed before, and the product
        remembered.append(inner.detach() + 1)
        return torch.relu(inner).square() + inner.exp().view(-1).view(4, 8)[:, :1]

    rows = kept(run, layer)
    found = sorted((row.operation, row.shape) for row in rows)
    own = "test_everything_that_stays_alive_counts_once.run"
    # The product, relu's result, which square saves too, and exp's result, although only a column is used.
    assert found == [("created by add", (4, 8)), (own, (4, 8)), (own, (4, 8)), (own, (4, 8))]
    assert total(rows) == 4 * 32 * 4


def test_the_input_counts_if_anything_holds_it() -> None:
    layer, held = torch.nn.Linear(8, 8), []
    given = torch.ones(4, 8, requires_grad=True)

    def remember() -> torch.Tensor:
        held.append(given.clone())
        return held[0] + layer.bias

    assert [row.shape for row in kept(lambda: layer(given.clone()), layer)] == [(4, 8)]
    assert kept(lambda: given.clone() + layer.bias, layer) == []
    assert [row.operation for row in kept(remember, layer)] == ["created by clone"]


def test_an_attribute_of_a_context_counts() -> None:
    class Keeps(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, given: torch.Tensor) -> torch.Tensor:
            ctx.extra = given.double()
            return given + 1

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> torch.Tensor:
            return grads[0]

    layer, hidden = torch.nn.Linear(8, 8), torch.ones(4, 8, requires_grad=True)
    (row,) = kept(lambda: Keeps.apply(hidden), layer)
    assert (row.dtype, row.nbytes) == ("float64", 4 * 8 * 8)
    assert row.operation == "created by _to_copy"


def test_terms_are_found_from_measured_layers() -> None:
    found = entry("torch", ("gqa", "dense"), "bfloat16", "sequence")
    attention, mlp = fit(found, [measure(case) for case in found.cases])
    assert attention["self_attention.linear_qkv"] == {"tokens*hidden_size/tensor_model_parallel_size": 2}
    assert "tokens*ffn_hidden_size/tensor_model_parallel_size" in {
        term for one in mlp.values() for term in one
    }


def test_a_size_that_no_term_has_is_an_error() -> None:
    sizes = [{"hidden_size": width, "seq_length": width + 1, "micro_batch_size": 2} for width in (2, 3, 5, 7)]
    tokens = [2 * one["seq_length"] for one in sizes]

    def layers(more: int) -> list[list[Kept]]:
        sums = [4 * rows + 3 * rows * one["hidden_size"] for rows, one in zip(tokens, sizes, strict=True)]
        return [[Kept("norm", "forward", (), "float32", nbytes + more)] for nbytes in sums]

    terms = ("tokens", "tokens*hidden_size", "hidden_size")
    assert fitted(layers(0), sizes, terms) == {"norm": {"tokens": 4, "tokens*hidden_size": 3}}
    with pytest.raises(ArithmeticError, match=r"norm keeps a tensor .* whose size is none of: tokens"):
        fitted(layers(1), sizes, terms)
