#!/usr/bin/env bash
# transformers 5.19.0, Python 3.12; seen on 2026-11-29.
#
# Version 5 of transformers stores rotary positions in `rope_parameters`, with `rope_theta` in it. If `rope_scaling`,
# the key of version 4, is added to such a file, as many model cards advise for longer texts, it replaces
# `rope_parameters` as a whole. The base in there is dropped as well: it becomes 10 000, or whatever default the class
# has (1 000 000 for Mixtral), without a warning, and `save_pretrained` stores that base. vLLM 0.32 reads its
# configurations through the same classes.
#
# `original_max_position_embeddings` at the top level, beside a `llama3` scaling, is not read when a file is loaded,
# but it is when the same object is standardized once more, as vLLM's `patch_rope_parameters` does. So transformers and
# vLLM scale by different lengths.
#
# Output seen:
#   rope_parameters alone: base 500000.0
#   with rope_scaling: base 10000.0, saved as 10000.0
#   with rope_scaling, Mixtral: base 1000000.0, saved as 1000000.0
#   original length in transformers 4096, standardized once more 8192
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.12 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.19.0
cat > "$folder/show.py" <<'PYTHON'
import json
import sys
from pathlib import Path

from transformers import AutoConfig

root = Path(sys.argv[1])
root.mkdir()


def opened(**keys):
    config = {"model_type": "llama", "max_position_embeddings": 4096, **keys}
    (root / "config.json").write_text(json.dumps(config))
    return AutoConfig.from_pretrained(str(root))


def bases(**keys):
    found = opened(**keys)
    found.save_pretrained(root)
    saved = json.loads((root / "config.json").read_text())["rope_parameters"]["rope_theta"]
    return f"base {found.rope_parameters['rope_theta']}, saved as {saved}"


stored = {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
longer = {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}
print("rope_parameters alone: base", opened(**stored).rope_parameters["rope_theta"])
print("with rope_scaling:", bases(**stored, **longer))
print("with rope_scaling, Mixtral:", bases(model_type="mixtral", **stored, **longer))
llama3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
found = opened(rope_scaling=llama3, original_max_position_embeddings=8192)
first = found.rope_parameters["original_max_position_embeddings"]
found.standardize_rope_params()
again = found.rope_parameters["original_max_position_embeddings"]
print(f"original length in transformers {first}, standardized once more {again}")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/show.py" "$folder/model" 2>/dev/null)
expected=$(sed -n 's/^#   //p' "$0")
echo "$seen"
diff <(echo "$expected") <(echo "$seen") || { echo "the behaviour has changed"; exit 1; }
