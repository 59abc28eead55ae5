"""Measure the checks of `tools/datasets/llava.py`: `python -m benchmarks.picture_shards [PICTURES]`.

Both sides write the same conversations and JPEGs (480 to 1 280 pixels) as shards, and let Energon prepare
them. The other side is webdataset's `ShardWriter` and `energon prepare`, which look into no picture. Three
rounds, alternating; CPU seconds of all processes.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.picture_loader import photo

ROUNDS = 3
PICTURES = 400
OURS, PLAIN = "llava.py", "webdataset"
_PLAIN = """
import json, sys, webdataset
from megatron.energon.cli.main import main
source, output = sys.argv[1:]
with webdataset.ShardWriter(output + "/train-%06d.tar", maxcount=1000, verbose=0) as shards:
    for number, one in enumerate(json.load(open(source + "/conversations.json"))):
        picture = open(source + "/" + one["image"], "rb").read()
        shards.write({"__key__": f"{number:09d}", "json": one, "image0.jpg": picture})
options = ["--non-interactive", "--no-progress", "--num-workers=1", "--sample-type=CrudeWebdataset"]
sys.argv = ["energon", "prepare", *options, "--split-parts=train:train-.*", output]
main()
"""


def cpu_seconds(side: str, source: Path) -> float:
    """Return what one side needs to write the source, in a folder of its own."""
    with tempfile.TemporaryDirectory() as output:
        if side == OURS:
            script = ["tools/datasets/llava.py", "--source", str(source / "conversations.json")]
            command = [*script, "--output", output, "--valid-every", "0", "--processes", "1"]
        else:
            command = ["-c", _PLAIN, str(source), output]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> int:
    """Print the seconds of both sides, and the difference per picture."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else PICTURES
    with tempfile.TemporaryDirectory() as folder:
        source, records, size = Path(folder), [], 0
        for number in range(count):
            picture = photo(number)
            size += len(picture)
            (source / f"{number}.jpg").write_bytes(picture)
            turns = [
                {"from": "human", "value": f"<image>\nWhat is {number}?"},
                {"from": "gpt", "value": "A picture."},
            ]
            records.append({"image": f"{number}.jpg", "conversations": turns})
        (source / "conversations.json").write_text(json.dumps(records))
        print(f"{count} JPEGs of {size / count / 1000:.0f} KB on average", flush=True)
        seconds: dict[str, list[float]] = {OURS: [], PLAIN: []}
        for _ in range(ROUNDS):
            for side, of_side in seconds.items():
                of_side.append(cpu_seconds(side, source))
                print(f"{side}: {of_side[-1]:.2f} s", flush=True)
    checks = statistics.median(seconds[OURS]) - statistics.median(seconds[PLAIN])
    print(f"medians: {', '.join(f'{side} {statistics.median(one):.2f} s' for side, one in seconds.items())}")
    print(f"the checks: {1000 * checks / count:.1f} ms per picture")
    return 0


if __name__ == "__main__":
    sys.exit(main())
