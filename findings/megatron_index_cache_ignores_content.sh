#!/usr/bin/env bash
# megatron-core 0.19.2, torch 2.13.0, Python 3.12; seen on 2026-11-29.
#
# GPTDataset caches its document, sample and shuffle indices in `<prefix>/cache/GPTDataset_indices`. The name of an
# entry is a hash of the configuration: path, number of samples, split, seed, length. Neither the content nor the
# modification time of the .bin/.idx files is part of it. If a corpus is built again under the same prefix with more
# documents, the next training silently reads only the documents of the old corpus.
#
# And prefixes without weights are read only once: the builder returns fewer samples than requested, without a
# warning, while one prefix, or prefixes with weights, are repeated as often as needed.
#
# Output seen:
#   20 documents: 20 are read
#   40 documents under the same prefix: 20 are read
#   40 documents under another prefix: 40 are read
#   100 samples of two prefixes without weights: 24
#   100 samples of two prefixes with weights: 100
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.12 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 megatron-core==0.19.2
cat > "$folder/show.py" <<'PYTHON'
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

root = Path(sys.argv[1])
root.mkdir()


class Tokenizer(SimpleNamespace):
    unique_identifiers = {"class": "Tokenizer"}


def write(name, documents):
    builder = IndexedDatasetBuilder(f"{root / name}.bin", dtype=numpy.uint16)
    for number in range(documents):
        builder.add_document(torch.full((9,), number + 1), [9])
    builder.finalize(f"{root / name}.idx")


def train_set(blend, samples):
    config = GPTDatasetConfig(
        random_seed=1, sequence_length=8, blend=blend, split="1", tokenizer=Tokenizer(eod=0, pad=-1, vocab_size=100),
        reset_position_ids=False, reset_attention_mask=False, eod_mask_loss=False, path_to_cache=None,
    )
    return BlendedMegatronDatasetBuilder(GPTDataset, (samples, 0, 0), lambda: True, config).build()[0]


def documents_read(name):
    dataset = train_set(([str(root / name)], None), 90)
    return len({int(token) for number in range(90) for token in dataset[number]["tokens"]})


write("text", 20)
print(f"20 documents: {documents_read('text')} are read")
write("text", 40)
print(f"40 documents under the same prefix: {documents_read('text')} are read")
write("other", 40)
print(f"40 documents under another prefix: {documents_read('other')} are read")
write("one", 12)
write("two", 10)
two = [str(root / "one"), str(root / "two")]
for blend, how in (((two, None), "without"), ((two, [0.5, 0.5]), "with")):
    print(f"100 samples of two prefixes {how} weights: {min(100, len(train_set(blend, 100)))}")
PYTHON
seen=$("$folder/venv/bin/python" -W ignore "$folder/show.py" "$folder/data" 2>/dev/null)
expected=$(sed -n 's/^#   //p' "$0")
echo "$seen"
diff <(echo "$expected") <(echo "$seen") || { echo "the behaviour has changed"; exit 1; }
