#!/usr/bin/env bash
# megatron-core 0.19.2, torch 2.13.0, Python 3.12, without TransformerEngine; seen on 2026-11-29.
#
# Megatron's local layers offer multi-latent attention (`get_gpt_layer_local_submodules(multi_latent_attention=True)`),
# but cannot build it: `MLASelfAttention` passes two widths that their `DotProductAttention` does not take.
#
# With another core attention, the layer trains, but wrongly with tensor parallelism. All heads share one rotary key,
# which each rank gathers (`gather_from_tensor_model_parallel_region`) and uses for its own heads. The gradient that
# goes back through the gathering is that of the rank's own heads; the sum over the ranks is missing. With two ranks,
# each misses half of the heads, and nothing is reported.
#
# Output seen:
#   the local layers: DotProductAttention.__init__() got an unexpected keyword argument 'k_channels'
#   1 rank: the gradient of linear_kv_down_proj has the norm 340.2 in rows of the latent, 76.1 in rows of the rotary key
#   2 ranks: the gradient of linear_kv_down_proj has the norm 340.2 in rows of the latent, 42.1 in rows of the rotary key
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.12 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 megatron-core==0.19.2
cat > "$folder/show.py" <<'PYTHON'
import sys
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

torch.cuda.current_device = lambda: torch.device("cpu")  # the layers create tensors there
RANKS, ROTARY = 12, 4


def layer(core: Any = None) -> torch.nn.Module:
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_submodules
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.multi_latent_attention import MLASelfAttention
    from megatron.core.transformer.transformer_config import MLATransformerConfig

    config = MLATransformerConfig(
        num_layers=1,
        hidden_size=16,
        num_attention_heads=4,
        q_lora_rank=8,
        kv_lora_rank=RANKS,
        qk_head_dim=8,
        qk_pos_emb_head_dim=ROTARY,
        v_head_dim=8,
        rope_type="rope",
        add_bias_linear=False,
        tensor_model_parallel_size=dist.get_world_size(),
        use_cpu_initialization=True,
    )
    parts = get_gpt_layer_local_submodules(multi_latent_attention=True).self_attention.submodules
    parts.core_attention = core or parts.core_attention
    return MLASelfAttention(config, parts, 1, AttnMaskType.causal)


class Core(torch.nn.Module):
    def __init__(self, softmax_scale: float, **_: Any) -> None:
        super().__init__()
        self.scale = softmax_scale

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale).permute(2, 0, 1, 3).flatten(2)


def run(rank: int, size: int) -> None:
    from megatron.core import parallel_state

    dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/{size}", rank=rank, world_size=size)
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=size)
    if size == 1:
        try:
            layer()
        except TypeError as error:
            print("the local layers:", str(error).partition(" when ")[0], flush=True)
    torch.manual_seed(1)
    attention = layer(Core)
    for weight in attention.parameters():  # this rank's part of the same whole weight
        shape = [*weight.shape]
        shape[weight.partition_dim] *= size
        weight.data = 0.3 * torch.randn(shape).chunk(size, weight.partition_dim)[rank].clone()
    attention(torch.randn(6, 1, 16), None)[0].square().sum().backward()
    parts = [torch.empty_like(attention.linear_kv_down_proj.weight) for _ in range(size)]
    dist.all_gather(parts, attention.linear_kv_down_proj.weight.grad)
    latent, rotary = (rows.norm().item() for rows in torch.cat(parts).split([RANKS, ROTARY]))
    if rank == 0:
        where = f"{latent:.1f} in rows of the latent, {rotary:.1f} in rows of the rotary key"
        who = f"{size} rank{'s' * (size > 1)}"
        print(f"{who}: the gradient of linear_kv_down_proj has the norm {where}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    for size in (1, 2):
        mp.spawn(run, (size,), nprocs=size)
PYTHON
mkdir "$folder/work"
seen=$(cd "$folder/work" && PYTHONWARNINGS=ignore OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/show.py" "$folder/work" \
    2>"$folder/errors") || { cat "$folder/errors"; exit 1; }
expected=$(sed -n 's/^#   //p' "$0")
echo "$seen"
diff <(echo "$expected") <(echo "$seen") || { echo "the behaviour has changed"; exit 1; }
