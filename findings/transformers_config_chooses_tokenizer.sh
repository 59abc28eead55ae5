#!/usr/bin/env bash
# transformers 5.19.0, tokenizers 0.23.3, Python 3.12; seen on 2026-11-29.
#
# `AutoTokenizer.from_pretrained` of a folder with `tokenizer.json` and `tokenizer_class: PreTrainedTokenizerFast`
# gives the ids of the file. If the same folder also holds a `config.json` with `model_type: qwen2`, the class named
# by the tokenizer is ignored: `Qwen2Tokenizer` replaces the pre-tokenizer of the file, so digits are cut one by one,
# and it appends a token of its own. Other model types (llama, mistral, gpt2, qwen3) leave the tokenizer alone.
# No warning is printed. So a tokenizer gives other ids beside the model than alone: data that was cut with the
# tokenizer's folder does not match what a server of the model folder does with prompts.
#
# Output seen:
#   alone TokenizersBackend 283 tokens, 11 ids
#   llama TokenizersBackend 283 tokens, same ids
#   mistral TokenizersBackend 283 tokens, same ids
#   gpt2 TokenizersBackend 283 tokens, same ids
#   qwen3 TokenizersBackend 283 tokens, same ids
#   qwen2 Qwen2Tokenizer 284 tokens, other ids
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.12 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.19.0 tokenizers==0.23.3
cat > "$folder/show.py" <<'PYTHON'
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

root = Path(sys.argv[1])
root.mkdir()
text = "In 2023 and 2024 the totals were 1234 and 12345."
bpe = Tokenizer(models.BPE())
bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
bpe.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False)
bpe.train_from_iterator([text] * 4, trainer)
bpe.save(str(root / "tokenizer.json"))
settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>"}
(root / "tokenizer_config.json").write_text(json.dumps(settings))


def opened():
    tokenizer = AutoTokenizer.from_pretrained(str(root))
    return type(tokenizer).__name__, len(tokenizer), tokenizer(text).input_ids


name, size, alone = opened()
print(f"alone {name} {size} tokens, {len(alone)} ids")
for model_type in ("llama", "mistral", "gpt2", "qwen3", "qwen2"):
    (root / "config.json").write_text(json.dumps({"model_type": model_type}))
    name, size, ids = opened()
    print(f"{model_type} {name} {size} tokens, {'same' if ids == alone else 'other'} ids")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/show.py" "$folder/tokenizer" 2>/dev/null)
expected=$(sed -n 's/^#   //p' "$0")
echo "$seen"
diff <(echo "$expected") <(echo "$seen") || { echo "the behaviour has changed"; exit 1; }
