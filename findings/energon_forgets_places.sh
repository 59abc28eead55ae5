#!/usr/bin/env bash
# megatron-energon 7.4.1, torch 2.13.0, Python 3.12; seen on 2026-11-30.
#
# A loader of Energon saves its state so that a run continues with the next sample. In two situations it does not:
#
# 1. With worker processes, a state holds for each worker an older point and a number of samples to skip from there.
#    If a restored loader is saved again before a worker has passed on a sample, the state says 0 for that worker,
#    so the next run repeats the samples. A job that saves at its first step after a restart does so.
# 2. With `repeat=False`, a shuffle buffer that holds the last samples of an epoch is saved without saying so. The
#    restored loader fills it with samples of the data's beginning, and passes those on once more.
#
# Output seen:
#   saved after 5 of 32 samples, restored, saved after 1 more, restored: of the next 4 samples, 2 came before
#   saved after 28 of 32 samples, restored, read to the end: 4 samples are expected, 36 come
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.12 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 megatron-energon==7.4.1
cat > "$folder/show.py" <<'PYTHON'
import io
import json
import tarfile
import warnings
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
from megatron.energon.epathlib import EPath
from megatron.energon.flavors import BaseWebdatasetFactory

warnings.filterwarnings("ignore")
folder = Path("data")
folder.mkdir()
with tarfile.open(folder / "shard.tar", "w") as tar:
    for number in range(32):
        content = json.dumps(number).encode()
        info = tarfile.TarInfo(f"{number:03d}.json")
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
ratios = [("train", 1.0)]
BaseWebdatasetFactory.prepare_dataset(EPath(folder), ["shard.tar"], split_parts_ratio=ratios, workers=1)
(folder / ".nv-meta" / "dataset.yaml").write_text("__module__: megatron.energon\n__class__: CrudeWebdataset\n")


@edataclass
class Number(Sample):
    number: int


@stateless
def cook(sample):
    return Number(**basic_sample_keys(sample), number=sample["json"])


class Encoder(DefaultTaskEncoder):
    cookers = [Cooker(cook)]


def loader(workers, repeat, state=None):
    dataset = get_train_dataset(
        str(folder),
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=workers),
        batch_size=None,
        shuffle_buffer_size=8,
        max_samples_per_sequence=100,
        task_encoder=Encoder(),
        repeat=repeat,
    )
    found = get_savable_loader(dataset)
    if state is not None:
        found.restore_state_rank(state)
    return found


def take(samples, count):
    return [next(samples).number for _ in range(count)]


first = loader(2, repeat=True)
before = take(iter(first), 5)
second = loader(2, True, first.save_state_rank())
before += take(iter(second), 1)
third = loader(2, True, second.save_state_rank())
again = {*before} & {*take(iter(third), 4)}
what = "saved after 5 of 32 samples, restored, saved after 1 more, restored"
print(f"{what}: of the next 4 samples, {len(again)} came before")

first = loader(0, repeat=False)
take(iter(first), 28)
rest = [sample.number for sample in loader(0, False, first.save_state_rank())]
print(f"saved after 28 of 32 samples, restored, read to the end: 4 samples are expected, {len(rest)} come")
PYTHON
cd "$folder"
venv/bin/python show.py 2>&1 | grep saved
