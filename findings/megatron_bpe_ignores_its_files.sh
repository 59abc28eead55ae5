#!/usr/bin/env bash
# megatron-core 0.19.2, transformers 5.19.0, tokenizers 0.23.3, torch 2.13.0, Python 3.12; seen on 2026-11-29.
#
# The tokenizer type `GPT2BPETokenizer` takes `vocab_file` and `merge_file`, and Megatron's documentation names these
# two files for it. The builder passes them to transformers' `AutoTokenizer.from_pretrained("gpt2", ...)`, which in
# transformers 5 ignores both where `gpt2` has a `tokenizer.json`. So the files are not read, without a warning: the
# ids are those of whatever `gpt2` means, a model on a hub or a folder in the current directory.
#
# Here the folder `gpt2` holds a byte-level tokenizer of 258 tokens, and the two files describe one of 262 tokens, in
# which `the` is a single token.
#
# Output seen:
#   the files, read by tokenizers: 262 tokens, `the` is 1 token
#   GPT2BPETokenizer with the files: 258 tokens, `the` is 3 tokens
#   GPT2BPETokenizer with files that do not exist: 258 tokens, `the` is 3 tokens
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.12 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 megatron-core==0.19.2 transformers==5.19.0 tokenizers==0.23.3
cat > "$folder/show.py" <<'PYTHON'
import json
from pathlib import Path

from megatron.core.tokenizers import MegatronTokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

letters = sorted(pre_tokenizers.ByteLevel.alphabet())


def bpe(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", "<pad>"])
    return tokenizer


gpt2 = Path("gpt2")
gpt2.mkdir()
bpe({token: number for number, token in enumerate(letters)}, []).save(str(gpt2 / "tokenizer.json"))
(gpt2 / "tokenizer_config.json").write_text(
    json.dumps({"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>", "pad_token": "<pad>"})
)
(gpt2 / "config.json").write_text(json.dumps({"model_type": "gpt2"}))

merges = [("t", "h"), ("th", "e"), ("a", "n"), ("an", "d")]
tokens = [*letters, *("".join(pair) for pair in merges)]
vocabulary = {token: number for number, token in enumerate(tokens)}
Path("vocab.json").write_text(json.dumps(vocabulary))
Path("merges.txt").write_text("#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges))


def say(what: str, size: int, ids: list[int]) -> None:
    print(f"{what}: {size} tokens, `the` is {len(ids)} token{'s' * (len(ids) > 1)}")


def build(vocab_file: str, merge_file: str) -> MegatronTokenizer:
    return MegatronTokenizer.from_pretrained(
        tokenizer_path="GPT2BPETokenizer",
        metadata_path={"library": "megatron"},
        vocab_file=vocab_file,
        merges_file=merge_file,
        additional_special_tokens=[],
        use_fast=True,
        trust_remote_code=False,
        include_special_tokens=True,
    )


own = bpe(vocabulary, merges)
say("the files, read by tokenizers", own.get_vocab_size(), own.encode("the").ids)
for what, files in {
    "the files": ("vocab.json", "merges.txt"),
    "files that do not exist": ("no.json", "no.txt"),
}.items():
    tokenizer = build(*files)
    say(f"GPT2BPETokenizer with {what}", tokenizer.vocab_size, tokenizer.tokenize("the"))
PYTHON
mkdir "$folder/work"
seen=$(cd "$folder/work" && HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore "$folder/show.py" 2>"$folder/errors") ||
    { cat "$folder/errors"; exit 1; }
expected=$(sed -n 's/^#   //p' "$0")
echo "$seen"
diff <(echo "$expected") <(echo "$seen") || { echo "the behaviour has changed"; exit 1; }
