"""Jobs of training are read from the engine's arguments as the engine itself understands them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flagscale.checks.hetero.layout import HeteroLayout, Mesh
from flagscale.config.catalog import load_catalog
from flagscale.engines.megatron.adapter import CATALOG
from flagscale.errors import UserError
from flagscale.planner.chips import Chip, chip_of, find_chip
from flagscale.planner.reading import training_of
from flagscale.planner.training import Training

H100 = find_chip("H100")
GPT: dict[str, Any] = {
    "num_layers": 8,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "seq_length": 32,
    "max_position_embeddings": 48,
    "micro_batch_size": 2,
    "global_batch_size": 16,
    "vocab_size": 1000,
    "bf16": True,
}


def read(world_size: int = 1, chips: tuple[Chip, ...] = (H100,), **changes: Any) -> Training:
    defaults = {option.dest: option.default for option in load_catalog(Path(CATALOG)).options.values()}
    values = {**defaults, **GPT, **changes}
    return training_of(values, world_size, chips, [8] * len(chips))


def test_defaults_are_those_of_the_engine() -> None:
    model = read().model
    assert (model.ffn, model.head_dim, model.groups, model.learned_positions) == (256, 16, 4, 48)
    assert (model.tied, model.norm_bias, model.linear_bias, model.gated) == (True, True, True, False)
    assert read(swiglu=True).model.ffn == 128  # int(64 * 8 / 3 / 64) * 64
    assert read(num_experts=4, moe_layer_freq="[0]*2+[1]*6").model.experts_in == (False,) * 2 + (True,) * 6
    assert (model.norm_position, model.qk_norm_across_heads) == ("pre", False)
    olmo = read(norm_position="post", qk_layernorm_across_heads=True).model
    assert (olmo.norm_position, olmo.qk_norm_across_heads) == ("post", True)
    assert read(num_experts=4, moe_layer_freq=2).model.experts_in == (True, False) * 4


def test_stages_and_chunks_have_their_layers_in_the_order_of_the_model() -> None:
    job = read(
        4,
        pipeline_model_parallel_size=2,
        num_virtual_stages_per_pipeline_rank=2,
        tensor_model_parallel_size=2,
    )
    assert job.layout.meshes[0].layers == ((2, 2), (2, 2))
    first, second = job.layout.stages
    assert [job.chunk_layers(first, chunk) for chunk in (0, 1)] == [range(2), range(4, 6)]
    assert [job.chunk_layers(second, chunk) for chunk in (0, 1)] == [range(2, 4), range(6, 8)]
    assert (job.padded_vocabulary, job.micro_batches) == (1024, 8)
    written = read(2, pipeline_model_parallel_size=2, pipeline_model_parallel_layout="Ettt|tttttL")
    assert written.layout.meshes[0].layers == ((3,), (5,))


def test_what_cuda_graphs_capture() -> None:
    assert read().captured == ()
    assert read(cuda_graph_impl="none", cuda_graph_modules=["attn"]).captured == ()
    assert read(cuda_graph_impl="full_iteration").captured == ("full_iteration",)
    assert read(cuda_graph_impl="local").captured == ("attn", "mlp", "moe")
    assert read(enable_cuda_graph=True).captured == ("attn", "mlp", "moe")
    assert read(cuda_graph_impl="local", cuda_graph_modules=["attn", "moe_router"]).captured == (
        "attn",
        "moe_router",
    )
    assert read(cuda_graph_impl="local", cuda_graph_scope_deprecated=["full_iteration"]).captured == (
        "full_iteration",
    )


def test_meshes_have_their_own_micro_batches() -> None:
    layout = HeteroLayout((Mesh(dp=4, layers=((3,),)), Mesh(tp=2, dp=2, layers=((5,),))))
    job = read(8, (H100, find_chip("A100-80")), hetero_layout=layout.to_json(), sequence_parallel=True)
    assert [block.micro_batch for block in job.blocks] == [2, 4]
    assert [block.sequence_parallel for block in job.blocks] == [False, True]
    assert job.micro_batches == 2


@pytest.mark.parametrize(
    ("changes", "numbers"),
    [
        ({}, (2, 4, 12)),
        ({"bf16": False}, (4, 4, 8)),
        ({"grad_reduce_in_bf16": True}, (2, 2, 12)),
        ({"bf16": False, "fp16": True}, (2, 2, 12)),
        ({"optimizer": "sgd"}, (2, 4, 8)),
        (
            {
                "use_precision_aware_optimizer": True,
                "main_grads_dtype": "bf16",
                "exp_avg_dtype": "bf16",
                "exp_avg_sq_dtype": "bf16",
            },
            (2, 2, 6),
        ),
        ({"optimizer_cpu_offload": True}, (2, 4, 0)),
    ],
)
def test_bytes_per_parameter(changes: dict[str, Any], numbers: tuple[float, ...]) -> None:
    found = read(**changes).numerics
    assert (found.parameter_bytes, found.gradient_bytes, found.state_bytes) == numbers


def test_what_the_planner_does_not_know_is_named_at_once() -> None:
    with pytest.raises(UserError) as error:
        read(is_hybrid_model=True, use_torch_fsdp2=True, softmax_type="learnable", vocab_size=None)
    assert [where.split(":")[0] for where in error.value.messages] == [
        "is_hybrid_model",
        "use_torch_fsdp2",
        "softmax_type",
        "padded_vocab_size",
    ]


def test_a_chip_is_named_or_the_nearest_one_is() -> None:
    with pytest.raises(UserError, match="B200"):
        find_chip("B20")


def test_a_measured_figure_overrides_the_published_one() -> None:
    own = {"bf16_tflops_dense": 1, "memory_gb": 2, "hbm_gb_s": 3, "measured": {"hbm_gb_s": 2.5}}
    assert chip_of("mine", own).hbm_bytes_s == 2.5e9
