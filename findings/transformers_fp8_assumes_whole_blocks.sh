#!/usr/bin/env bash
# transformers 5.19.0, torch 2.13.0, Python 3.12; seen on 2026-11-29.
#
# DeepSeek-V3 is published with 8-bit weights and a scale for each block of 128 x 128 values; the last blocks of a
# weight may be smaller. `kv_a_proj_with_mqa` is [576, 7168] with scales [5, 56]: four blocks of 128 rows and one of 64
# (`weight_dequant` in DeepSeek's inference/kernel.py). transformers ignores `weight_block_size` when it restores the
# weights (`FineGrainedFP8Config(dequantize=True)`), and divides the rows by the number of scales. If that leaves a
# rest, it fails; if not, it silently takes blocks of another size.
#
# Output seen:
#   [256, 256], scales [2, 2]: as defined
#   [160, 256], scales [2, 2]: 30 % of the values differ
#   [576, 7168], scales [5, 56]: ValueError: Weight shape (576, 7168) not divisible by scale grid (5, 56).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.12 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.19.0
cat > "$folder/show.py" <<'PYTHON'
import torch
from transformers.integrations.finegrained_fp8 import Fp8Dequantize

BLOCK = 128
restore = Fp8Dequantize(None)
for rows, columns in ((256, 256), (160, 256), (576, 7168)):
    torch.manual_seed(0)
    weight = torch.randn(rows, columns).to(torch.float8_e4m3fn)
    scales = torch.rand(-(-rows // BLOCK), -(-columns // BLOCK)) + 0.5
    whole = scales.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
    defined = (weight.float() * whole).bfloat16()
    case = f"{[rows, columns]}, scales {[*scales.shape]}"
    try:
        found = restore._dequantize_one(weight, scales, torch.bfloat16)
    except ValueError as error:
        print(f"{case}: ValueError: {error}")
        continue
    share = (found != defined).float().mean().item()
    print(f"{case}: {f'{share:.0%} of the values differ'.replace('%', ' %') if share else 'as defined'}")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/show.py" 2>/dev/null)
expected=$(sed -n 's/^#   //p' "$0")
echo "$seen"
diff <(echo "$expected") <(echo "$seen") || { echo "the behaviour has changed"; exit 1; }
