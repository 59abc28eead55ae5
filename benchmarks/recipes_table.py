"""The examples with real sizes, their parameters and estimates: `python -m benchmarks.recipes_table`.

Prints the tables of docs/recipes.md and writes them there.
"""

from __future__ import annotations

import os
import sys

from benchmarks.layouts import write
from flagscale.estimates.text import GIB, chips_text
from flagscale.planner.estimate import Estimate
from flagscale_testing.example_jobs import FOLDERS, ROOT, estimated, parameters, real_sizes

DOCUMENT = ROOT / "docs" / "recipes.md"
BEGIN, END = "<!-- sizes: begin -->", "<!-- sizes: end -->"
PUBLISHED = {
    "llama2_7b": "6.74",
    "llama2_70b": "69",
    "llama3_8b": "8.03",
    "llama3_70b": "70.6",
    "mistral_7b": "7.25",
    "mixtral_8x7b": "46.7",
    "mixtral_8x22b": "141",
    "qwen2.5_7b": "7.62",
    "qwen3_8b": "8.19",
    "qwen3_30b_a3b": "30.5",
    "deepseek_v2_lite": "15.7",
    "deepseek_v3": "671",
}
"""Billions of parameters on the page of each model; an experiment's name begins with that of its model."""
_HEAD = """\
| experiment file | parameters | published | hosts | GPUs | layout | GiB per GPU | seconds per step |
|---|---|---|---|---|---|---|---|"""


def tables() -> str:
    """Return a Markdown table for each folder of examples; the working directory must be the root."""
    return "\n\n".join("\n".join([f"### {folder}", "", _HEAD, *rows(folder)]) for folder in FOLDERS)


def rows(folder: str) -> list[str]:
    """Return the rows of a folder of examples, the smallest model first."""
    sizes = {example: parameters(estimated(example)[1].training) for example in real_sizes(folder)}
    return [row(example) for example in sorted(sizes, key=sizes.__getitem__)]


def row(example: str) -> str:
    """Return the row of an example; memory is that of the fullest stage."""
    folder, name = example.split("/")
    job, found = estimated(example)
    cells = (
        f"[{name}](../examples/{folder}/conf/{name}.yaml)",
        f"{parameters(found.training):,}",
        published(job.name),
        f"{len(job.hosts)}",
        chips_text(found).replace("|", r"\|"),
        job.layout.replace("|", r"\|"),
        memory(found),
        seconds(found),
    )
    return f"| {' | '.join(cells)} |"


def published(experiment: str) -> str:
    """Return the published size of an experiment's model: `8.03 billion`."""
    return next(f"{size} billion" for name, size in PUBLISHED.items() if experiment.startswith(name))


def memory(found: Estimate) -> str:
    """Return `58.7 (59.2) of 79.1`: the estimate, what it is at most with 95 %, and the chip's memory."""
    one = found.fullest
    used, most, whole = (size / GIB for size in (one.memory.device, one.high, one.chip.memory_bytes))
    return f"{used:.1f} ({most:.1f}) of {whole:.1f}"


def seconds(found: Estimate) -> str:
    """Return `54.5 (41.4 to 97.5)`: the estimate and its interval of 95 %."""
    speed = found.speed
    assert speed, "the chips of the examples are known"
    return f"{speed.step.seconds:.1f} ({speed.low:.1f} to {speed.high:.1f})"


def main() -> int:
    """Print the tables and write them into the document."""
    os.chdir(ROOT)
    text = tables()
    print(text)
    write(DOCUMENT, text, BEGIN, END)
    return 0


if __name__ == "__main__":
    sys.exit(main())
