#!/usr/bin/env bash
# megatron-core 0.19.2, torch 2.13.0, Python 3.12; seen on 2026-11-30.
#
# After its first iterations, Megatron prints the memory that a job should need
# (`megatron.training.theoretical_memory_usage.report_theoretical_memory`). It does not know context parallelism: each
# of 8 context parallel ranks keeps an eighth of the activations, and the distributed optimizer divides its states over
# data and context parallel ranks together, but the report counts all activations, and states that are divided over the
# data parallel ranks only. So a job of 8 ranks that needs less activation memory with context parallelism is reported to
# need more memory in all. On four published peaks of such jobs the report is 110 to 345 % too high.
#
# Here a model of the shape of Llama 3 8B with 32,768 tokens, once with 8 data parallel ranks and once with 8 context
# parallel ranks.
#
# Output seen:
#   data parallel 8: weights and optimizer 56.1 GiB, activations 144.3 GiB
#   context parallel 8: weights and optimizer 134.6 GiB, activations 144.3 GiB
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.12 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 megatron-core==0.19.2
cat > "$folder/show.py" <<'PYTHON'
import contextlib
import os
from argparse import Namespace

from megatron.training.theoretical_memory_usage import report_theoretical_memory


def report(**degrees: int) -> str:
    job = Namespace(
        num_layers=32,
        hidden_size=4096,
        ffn_hidden_size=14336,
        num_attention_heads=32,
        kv_channels=128,
        group_query_attention=True,
        num_query_groups=8,
        multi_latent_attention=False,
        swiglu=True,
        normalization="RMSNorm",
        padded_vocab_size=128256,
        untie_embeddings_and_output_weights=True,
        num_experts=None,
        moe_ffn_hidden_size=None,
        moe_layer_freq=1,
        moe_shared_expert_intermediate_size=None,
        moe_latent_size=None,
        mtp_num_layers=None,
        is_hybrid_model=False,
        hybrid_layer_pattern=None,
        seq_length=32768,
        micro_batch_size=1,
        use_distributed_optimizer=True,
        sequence_parallel=True,
        recompute_granularity="selective",
        tensor_model_parallel_size=1,
        pipeline_model_parallel_size=1,
        virtual_pipeline_model_parallel_size=None,
        expert_model_parallel_size=1,
        expert_tensor_parallel_size=1,
        world_size=8,
        **degrees,
    )
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        weights, activations, _ = report_theoretical_memory(job, num_microbatches=4)
    return f"weights and optimizer {weights / 1024:.1f} GiB, activations {activations / 1024:.1f} GiB"


print("data parallel 8:", report(data_parallel_size=8, context_parallel_size=1))
print("context parallel 8:", report(data_parallel_size=1, context_parallel_size=8))
PYTHON
seen=$("$folder/venv/bin/python" -W ignore "$folder/show.py" 2>"$folder/errors") || { cat "$folder/errors"; exit 1; }
expected=$(sed -n 's/^#   //p' "$0")
echo "$seen"
diff <(echo "$expected") <(echo "$seen") || { echo "the behaviour has changed"; exit 1; }
