#!/usr/bin/env bash
# megatron-energon 7.4.1, torch 2.13.0, Python 3.12; seen on 2026-11-30.
#
# The state of a loader belongs to the number of ranks that saved it, but nothing in it says so. Restored by as many
# ranks, a data set is continued without losing or repeating a sample. Restored by twice as many, it raises no error:
# the loaders end at once, as if everything had been read, and most samples are never seen.
#
# Beside that, `repeat=True` with a shuffle buffer has no epochs: the first N samples of N are not all different.
#
# Output seen:
#   32 samples, 10 read by 2 ranks
#   continued by 2 ranks: 32 different samples seen, 0 of them twice
#   continued by 4 ranks: 10 different samples seen, 0 of them twice
#   repeated, without a shuffle buffer: 32 of the first 32 are different
#   repeated, with a shuffle buffer: fewer are different
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.12 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet megatron-energon==7.4.1 torch==2.13.0
cat > "$folder/show.py" <<'PYTHON'
import io
import json
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

from megatron.energon import (
    Cooker,
    DefaultTaskEncoder,
    Sample,
    WorkerConfig,
    basic_sample_keys,
    edataclass,
    get_savable_loader,
    get_train_dataset,
    stateless,
)

root = Path(sys.argv[1])
root.mkdir()
for shard in range(4):
    with tarfile.open(root / f"shard_{shard}.tar", "w") as tar:
        for number in range(shard * 8, shard * 8 + 8):
            data = json.dumps({"number": number}).encode()
            member = tarfile.TarInfo(f"s{number:03d}.json")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
options = "--non-interactive --split-ratio 1,0,0 --sample-type CrudeWebdataset --no-progress".split()
energon = Path(sys.executable).with_name("energon")
subprocess.run([energon, "prepare", root, *options], check=True, capture_output=True)


@edataclass
class Number(Sample):
    number: int


@stateless
def cook(sample):
    return Number(**basic_sample_keys(sample), number=sample["json"]["number"])


class Encoder(DefaultTaskEncoder):
    cookers = [Cooker(cook)]

    def batch(self, samples):
        return [one.number for one in samples]


def loader(rank, ranks, repeat=False, buffer=8):
    dataset = get_train_dataset(
        str(root),
        worker_config=WorkerConfig(rank=rank, world_size=ranks, num_workers=0),
        batch_size=1,
        shuffle_buffer_size=buffer,
        max_samples_per_sequence=100,
        task_encoder=Encoder(),
        repeat=repeat,
    )
    return get_savable_loader(dataset)


def first(one, count):
    found = []
    for batch in one:
        found += batch
        if len(found) == count:
            break
    return found


loaders = [loader(rank, 2) for rank in range(2)]
read = [number for one in loaders for number in first(one, 5)]
states = [one.save_state_rank() for one in loaders]
print(f"32 samples, {len(read)} read by 2 ranks")
for ranks in (2, 4):
    seen = list(read)
    for rank in range(ranks):
        one = loader(rank, ranks)
        one.restore_state_rank(states[rank % 2])
        seen += [number for batch in one for number in batch]
    counts = Counter(seen)
    twice = sum(count > 1 for count in counts.values())
    print(f"continued by {ranks} ranks: {len(counts)} different samples seen, {twice} of them twice")
plain = len(set(first(loader(0, 1, repeat=True, buffer=None), 32)))
print(f"repeated, without a shuffle buffer: {plain} of the first 32 are different")
shuffled = len(set(first(loader(0, 1, repeat=True), 32)))
print(f"repeated, with a shuffle buffer: {'fewer are different' if shuffled < 32 else 'all are different'}")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/show.py" "$folder/data" 2>/dev/null)
expected=$(sed -n 's/^#   //p' "$0")
echo "$seen"
diff <(echo "$expected") <(echo "$seen") || { echo "the behaviour has changed"; exit 1; }
