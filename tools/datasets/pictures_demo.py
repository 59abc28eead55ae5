"""Draw pictures with questions and answers to train on: `pictures_demo.py --output data/pictures_demo`.

Creates `pictures/`, `conversations.json` in the form of LLaVA, `energon/`, the folder for the training, and
`tokenizer/` for a model that starts from nothing. A second call reuses them. No two pictures are equal, so
the split `val` shows what a model has learnt to see.
"""

import json
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: import from the repository's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from flagscale.errors import UserError, nearest
from flagscale.files import write_atomic
from tools.command import run
from tools.datasets import llava, train_tokenizer
from tools.datasets.documents import open_source
from tools.datasets.folders import locked, read_json, refuse_other, write_json
from tools.datasets.options import VALID_EVERY
from tools.datasets.pictures.drawing import KINDS, drawn
from tools.datasets.pictures.folder import Finished

SAMPLES, SIDE, SEED = 4000, 56, 1
_VERSION = 1
"""Of the pictures and questions."""
_FEWEST, _SMALLEST = 2, 14
_PICTURES, _COMPLETE = "pictures", "complete"
VOCABULARY = 384
SPECIAL = ("<|im_end|>", "<|im_start|>", "<image>", "<video>")
"""The tokens of the chat template `chatml` and the placeholders; the first one ends an answer."""


def draw(
    output: Path,
    *,
    samples: int = SAMPLES,
    side: int = SIDE,
    seed: int = SEED,
    kinds: tuple[str, ...] = KINDS,
    blank: bool = False,
    valid_every: int = VALID_EVERY,
    processes: int = 1,
    overwrite: bool = False,
) -> Finished:
    """Draw the pictures, unless they are there, and prepare them for Energon.

    Args:
        side: of a picture, in pixels.
        kinds: of questions, which take turns.
        blank: leave the pictures empty, to train a model that cannot see what it is asked.

    Raises:
        UserError: the folder was made with other settings.
    """
    if samples < _FEWEST:
        raise UserError(f"--samples {samples}: must be {_FEWEST} or more")
    if side < _SMALLEST:
        raise UserError(f"--side {side}: must be {_SMALLEST} or more pixels")
    if wrong := [kind for kind in kinds if kind not in KINDS]:
        raise UserError(f"--kinds {wrong[0]}: unknown; {nearest(wrong[0], KINDS)}")
    record, pictures = output / "drawn.json", output / _PICTURES
    conversations, texts = output / "conversations.json", output / "texts.txt"
    asked = {"version": _VERSION, "samples": samples, "side": side, "seed": seed, "kinds": list(kinds)}
    asked |= {"blank": True} if blank else {}
    with locked(output):
        made = None if overwrite else read_json(record)
        if made is not None:
            refuse_other(output, {key: value for key, value in made.items() if key != _COMPLETE}, asked)
        elif not overwrite and (strangers := [path for path in (pictures, conversations) if path.exists()]):
            raise UserError(
                f"{strangers[0]}: not made by this tool; choose another --output, or --overwrite it"
            )
        if made is None or not made[_COMPLETE]:
            write_json(record, {**asked, _COMPLETE: False})
            pictures.mkdir(exist_ok=True)
            content = [_written(output, number, side, seed, kinds, blank) for number in range(samples)]
            text = ",\n".join(json.dumps(one) for one in content)
            write_atomic(conversations, f"[\n{text}\n]\n")
            turns = (turn["value"] for one in content for turn in one["conversations"])
            write_atomic(texts, "\n".join(turns))
            write_json(record, {**asked, _COMPLETE: True})
        done = llava.prepare(
            [conversations],
            output / "energon",
            valid_every=valid_every,
            processes=processes,
            overwrite=overwrite,
        )
    train_tokenizer.train(
        open_source(texts),
        output / "tokenizer",
        vocabulary=VOCABULARY,
        special=SPECIAL,
        overwrite=overwrite,
    )
    return done


def _written(
    output: Path, number: int, side: int, seed: int, kinds: tuple[str, ...], blank: bool
) -> dict[str, Any]:
    """Write a picture; return its conversation in the form of LLaVA."""
    # Takes turns among all kinds, also among the samples that are held out at regular distances.
    kind = kinds[(number + number // len(kinds)) % len(kinds)]
    image, question, answer = drawn(kind, seed, number // len(kinds), side, blank=blank)
    name = f"{_PICTURES}/{number:06d}.png"
    image.save(output / name)  # `drawn.json` tells later whether all are complete
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"id": f"{kind}-{number:06d}", "image": name, "conversations": turns}


def main() -> int:
    """Draw from the command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--output", type=Path, default=Path("data/pictures_demo"), help="folder (default: %(default)s)"
    )
    for name, default, meaning in (
        ("samples", SAMPLES, "number of pictures"),
        ("side", SIDE, "height and width of a picture in pixels"),
        ("seed", SEED, "another number gives other pictures"),
        ("valid-every", VALID_EVERY, "hold out every n-th sample for the split `val`"),
        ("processes", 1, "processes that prepare the folder"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} (default: %(default)s)")
    parser.add_argument(
        "--kinds", nargs="+", default=KINDS, help=f"kinds of questions (default: {' '.join(KINDS)})"
    )
    parser.add_argument("--blank", action="store_true", help="leave the pictures empty")
    parser.add_argument("--overwrite", action="store_true", help="replace the contents of the folder")
    arguments = vars(parser.parse_args())
    done = draw(**{**arguments, "kinds": tuple(arguments["kinds"])})
    print(f"{arguments['output']}: {'' if done.made_now else 'up to date, '}{done}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
