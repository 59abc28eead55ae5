#!/usr/bin/env bash
# megatron-core 0.19.2, torch 2.13.0, Python 3.12; seen on 2026-11-29.
#
# Routing without an auxiliary loss (`--moe-router-enable-expert-bias`) counts the tokens of each expert during a
# step, and moves the bias of each expert according to its count. The trainer's wrapper for bf16 converts all buffers
# of the model. The router converts the bias back to fp32, but not the counts: they are added up in bf16, which has 8
# bits. Above 256 they are rounded at each micro-batch, and far above that, an addition of about the usual size is
# always rounded to the same number. Experts with few tokens look full, those with many look emptier than they are,
# and the bias of an expert near the average stays, or moves in the wrong direction.
#
# Output seen:
#   the bias is kept in torch.float32, the counts in torch.bfloat16
#   tokens per expert: 54938 72224 60232 64119 70713 65311 68313 68438
#   as counted:        61440 68096 64256 65024 67072 65536 67072 66048
#   the bias should move by 1 -1 1 1 -1 1 -1 -1
#   and moves by            1 -1 1 1 -1 0 -1 -1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.12 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 megatron-core==0.19.2
cat > "$folder/show.py" <<'PYTHON'
import sys

import torch

torch.cuda.current_device = lambda: "cpu"  # the router asks for a device; nothing else here needs one
from megatron.core import parallel_state
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe.moe_utils import get_updated_expert_bias
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_config import TransformerConfig

torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
parallel_state.initialize_model_parallel()
config = TransformerConfig(
    num_layers=1, hidden_size=64, num_attention_heads=4, num_moe_experts=8, moe_router_topk=2, bf16=True,
    params_dtype=torch.bfloat16, add_bias_linear=False, moe_router_score_function="sigmoid",
    moe_router_enable_expert_bias=True, moe_router_load_balancing_type="none",
)
torch.manual_seed(1)
router = TopKRouter(config, ProcessGroupCollection.use_mpu_process_groups())
torch.nn.init.normal_(router.weight, std=0.002)
router.bfloat16()  # as the trainer's wrapper for bf16 does
router._maintain_float32_expert_bias()  # as the trainer does next
print(f"the bias is kept in {router.expert_bias.dtype}, the counts in {router.local_tokens_per_expert.dtype}")
exact = torch.zeros(8)
for _ in range(256):
    exact += router(torch.randn(1024, 1, 64).bfloat16())[1].sum(0)
counted = router.local_tokens_per_expert
print("tokens per expert:", *exact.int().tolist())
print("as counted:       ", *counted.int().tolist())
moves = [get_updated_expert_bias(counts, torch.zeros(8), 1.0) for counts in (exact, counted.clone())]
print("the bias should move by", *moves[0].int().tolist())
print("and moves by           ", *moves[1].int().tolist())
PYTHON
seen=$(TORCHDYNAMO_DISABLE=1 "$folder/venv/bin/python" -W ignore "$folder/show.py" "$folder/store" 2>/dev/null)
expected=$(sed -n 's/^#   //p' "$0")
echo "$seen"
diff <(echo "$expected") <(echo "$seen") || { echo "the behaviour has changed"; exit 1; }
