"""`make demo-vlm`: train a model to see, and another one without pictures; serve both and ask them to count.

Both are equally large and learn from the same questions and answers. The pictures on which they are compared
were in neither training.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:  # run as a file: import from the repository's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from flagscale.checks.message_files import file_part
from flagscale.platforms import find
from flagscale.run.rundir import RunDir
from tools.datasets.pictures_demo import SEED, SIDE
from tools.demo_serve import is_trained, step

CONF = ("run.py", "--config-path", "./examples/llava_onevision/conf", "--config-name")
TASK = Path("examples/llava_onevision/conf/train/demo.yaml")
DATA, OUTPUT = Path("data/pictures_demo"), Path("outputs/llava_demo")
SEES, BLIND = "sees", "blind"
"""The two models; the second one learns from empty pictures."""
PORTS = {SEES: 8000, BLIND: 8001}
QUESTIONS, SHOWN = 96, 12
"""Pictures to ask about, and to draw in the PNG."""


class Asked(NamedTuple):
    """A new picture with its question, the true answer, and what each model answered."""

    picture: Path
    question: str
    answer: str
    answers: dict[str, str]


def data(name: str) -> Path:
    """Return the folder of a model's pictures."""
    return DATA if name == SEES else DATA.with_name(f"{DATA.name}_{name}")


def output(name: str) -> Path:
    """Return the run directory of a model's training."""
    return OUTPUT if name == SEES else OUTPUT.with_name(f"{OUTPUT.name}_{name}")


def made(name: str, devices: int) -> int:
    """Draw a model's pictures, train it and convert it, as far as that is not done; return the exit code."""
    drawn = ("tools/datasets/pictures_demo.py", "--output", str(data(name)))
    if code := step(*drawn, *(["--blank"] if name == BLIND else [])):
        return code
    checkpoints = RunDir(output(name)).checkpoints
    if not is_trained(checkpoints, TASK):
        own = [f"experiment.exp_name={output(name).name}", f"train.data.data_path={data(name) / 'energon'}"]
        ranks = [f"experiment.runner.nproc_per_node={devices}"] if devices < 2 else []
        if code := step(*CONF, "config", "action=test", *(own if name == BLIND else []), *ranks):
            return code
    folder = str(output(name) / "hf")
    return step("tools/checkpoint/convert.py", "--load", str(checkpoints), "--save", folder, "--overwrite")


def new_pictures(folder: Path, count: int) -> list[Asked]:
    """Draw pictures that no training had, with questions about how many shapes there are."""
    from tools.datasets.pictures.drawing import drawn

    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number in range(count):
        image, question, answer = drawn("counts", SEED + 1, number, SIDE)
        image.save(picture := folder / f"{number:03d}.png")
        found.append(Asked(picture, question, answer, {}))
    return found


def ask_all(asked: Sequence[Asked]) -> None:
    """Put every question to both models, and note what they answer."""
    import openai

    def answer(one: Asked, name: str) -> None:
        content: Any = [file_part("image", one.picture), {"type": "text", "text": one.question}]
        chat = clients[name].chat.completions.create(
            model=name, messages=[{"role": "user", "content": content}], max_tokens=8, temperature=0
        )
        one.answers[name] = (chat.choices[0].message.content or "").strip()

    clients = {
        name: openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        for name, port in PORTS.items()
    }
    with ThreadPoolExecutor(16) as pool:
        for done in [pool.submit(answer, one, name) for one in asked for name in PORTS]:
            done.result()


def right(asked: Sequence[Asked], name: str) -> int:
    """Return how many questions a model has answered truly."""
    return sum(one.answers[name] == one.answer for one in asked)


def draw_answers(asked: Sequence[Asked], file: Path) -> None:
    """Write a PNG of pictures with their questions and answers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from PIL import Image

    columns = 4
    rows = -(-len(asked) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(2.6 * columns, 3 * rows), squeeze=False)
    for one, axis in zip(asked, axes.flat, strict=False):
        axis.imshow(Image.open(one.picture))
        is_right = one.answers[SEES] == one.answer
        axis.set_title(one.question, fontsize=9)
        axis.set_xlabel(
            f"{one.answers[SEES]}   (without pictures: {one.answers[BLIND]})",
            fontsize=9,
            color="#059669" if is_right else "#dc2626",
        )
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    figure.tight_layout()
    figure.savefig(file, dpi=100)
    pyplot.close(figure)


def main() -> int:
    """Run the steps; return the exit code of the first that fails. The servers are always stopped."""
    platform = find("auto")
    devices = 2 if platform.name == "cpu" else platform.count_devices(os.environ)
    for name in PORTS:
        if code := made(name, devices):
            return code
    served = ",".join(f"{name}:{{model:{output(name) / 'hf'},port:{port}}}" for name, port in PORTS.items())
    run = [*CONF, "config_serve", f"+serve.models={{{served}}}"]
    run += ["~serve.model", "~serve.served_model_name", "~serve.port"]
    run += ["experiment.runner.nproc_per_node=2"] if platform.name == "cpu" else []
    asked = new_pictures(OUTPUT / "new_pictures", QUESTIONS)
    try:
        if code := step(*run, "action=run"):
            return code
        circles = [one for one in asked if "circles" in one.question][:2]
        words = [("tools/ask.py", one.question, "--image", str(one.picture)) for one in circles]
        if code := max(step(*question) for question in words):
            return code
        ask_all(asked)
    finally:
        stopped = step(*run, "action=stop")
    counts = {name: right(asked, name) for name in PORTS}
    picture, record = OUTPUT / "answers.png", OUTPUT / "answers.json"
    draw_answers(asked[:SHOWN], picture)
    lines = [{**one._asdict(), "picture": str(one.picture)} for one in asked]
    record.write_text(json.dumps(lines, indent=1))
    print(f'\n"How many ... are there?", {len(asked)} new pictures with one to four shapes:')
    print(f"  trained with pictures      {counts[SEES]} right")
    print(f"  trained with empty ones    {counts[BLIND]} right (by chance: {len(asked) // 4})")
    print(f"pictures with answers  {picture}\nall answers            {record}")
    print(f"model                  {output(SEES) / 'hf'} (opens in transformers and vLLM)")
    return stopped or (0 if counts[SEES] > counts[BLIND] else 1)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
