"""The real Aquila sizes have as many parameters as their names say, in Megatron's model without memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from flagscale.config.load import load_experiment
from flagscale.config.source_map import SourceMap
from flagscale.engines.megatron.adapter import MEGATRON
from flagscale.values import Host, Job

pytestmark = pytest.mark.filterwarnings("ignore")  # the engine warns that TransformerEngine is missing

CONF = Path(__file__).parents[2] / "examples" / "aquila" / "conf"

SIZES = {
    "3b": (3.25e9, 8),
    "7b": (7.30e9, 8),
    "34b": (33.7e9, 32),
    "70b": (70.1e9, 32),
}
"""Size -> (parameters, ranks)."""


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Create process groups of one rank, which Megatron's layers need."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    store = dist.FileStore(str(tmp_path_factory.mktemp("store") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    yield
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def job_of(size: str, ranks: int) -> Job:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loaded = load_experiment(compose(f"config_{size}"), SourceMap())
    assert loaded.experiment
    hosts = tuple(Host(rank, f"worker{rank}", 8, "nvidia") for rank in range(ranks // 8))
    return MEGATRON.build(loaded.experiment, hosts, SourceMap())


def option(job: Job, name: str, default: int | None = None) -> int:
    if name not in job.role.argv and default is not None:
        return default
    return int(job.role.argv[job.role.argv.index(name) + 1])


def padded_vocabulary(job: Job) -> int:
    unit = option(job, "--make-vocab-size-divisible-by") * option(job, "--tensor-model-parallel-size")
    return -(-option(job, "--vocab-size") // unit) * unit


def by_formula(job: Job) -> int:
    """Count by hand: embedding and output; per layer, attention, gated feed-forward and two norms."""
    hidden, heads = option(job, "--hidden-size"), option(job, "--num-attention-heads")
    groups = option(job, "--num-query-groups", heads)
    attention = 2 * hidden * hidden + 2 * hidden * (hidden // heads) * groups
    feed_forward = 3 * hidden * option(job, "--ffn-hidden-size")
    layer = attention + feed_forward + 2 * hidden
    return 2 * padded_vocabulary(job) * hidden + option(job, "--num-layers") * layer + hidden


def build_model(job: Job) -> Any:
    """Build the whole model on the meta device, which has shapes but no memory."""
    import torch
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.transformer import TransformerConfig

    heads = option(job, "--num-attention-heads")
    config = TransformerConfig(
        num_layers=option(job, "--num-layers"),
        hidden_size=option(job, "--hidden-size"),
        ffn_hidden_size=option(job, "--ffn-hidden-size"),
        num_attention_heads=heads,
        num_query_groups=option(job, "--num-query-groups", heads),
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear="--disable-bias-linear" not in job.role.argv,
        use_cpu_initialization=True,
        perform_initialization=False,
    )
    with torch.device("meta"):
        return GPTModel(
            config,
            get_gpt_layer_local_spec(normalization="RMSNorm"),
            vocab_size=padded_vocabulary(job),
            max_sequence_length=option(job, "--seq-length"),
            position_embedding_type="rope",
            share_embeddings_and_output_weights="--untie-embeddings-and-output-weights" not in job.role.argv,
        )


@pytest.mark.parametrize("size", SIZES)
def test_the_model_has_the_size_in_its_name(size: str, one_process: None) -> None:
    expected, ranks = SIZES[size]
    job = job_of(size, ranks)
    model = build_model(job)
    assert all(parameter.is_meta for parameter in model.parameters())
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == by_formula(job)
    assert count == pytest.approx(expected, rel=0.005)
