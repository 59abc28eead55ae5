"""Show samples with their pictures, tokens and masks as a training reads them, on a page (HTML).

    show_pictures.py --data data/mine --tokenizer model/ --output page.html --vision-model-type siglip

The arguments of the vision part are those of the training, with the same defaults.
"""

import io
import itertools
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: import from the repository's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from flagscale.errors import UserError
from flagscale.files import write_atomic
from flagscale.vision.arguments import vision_of
from flagscale.vision.tiling import Vision
from megatron.flagscale.vision.arguments import add_model_arguments
from tools.command import run
from tools.datasets.pictures.page import Figure, Shown, Token, page

SAMPLES, SEQ_LENGTH = 20, 4096
_SHOWN_SIDE = 480
"""Pixels of the longer side of a picture on the page."""


def show(arguments: Namespace) -> str:
    """Return the page.

    Raises:
        UserError: the data or the tokenizer cannot be used.
    """
    from transformers import AutoTokenizer

    from energon_flagscale.encoder import Encoder, Sequences
    from tools.datasets.pictures.samples import crude_samples

    if not (arguments.tokenizer / "tokenizer_config.json").is_file():
        raise UserError(f"{arguments.tokenizer}: no tokenizer (tokenizer_config.json is missing)")
    vision = vision_of(vars(arguments))
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    encoder = Encoder(tokenizer, vision, Sequences(arguments.seq_length), arguments.chat_template)
    samples = crude_samples(arguments.data, arguments.split, arguments.samples, arguments.seed)
    shown = [_shown(files, encoder, tokenizer) for files in samples]
    about = f"{len(shown)} samples at random of the split {arguments.split!r}, with {_told(vision)}."
    return page(str(arguments.data), about, shown)


def _shown(files: dict[str, Any], encoder: Any, tokenizer: Any) -> Shown:
    from energon_flagscale.cookers import cook
    from energon_flagscale.unusable import UnusableSample

    key = str(files["__key__"])
    try:
        cooked = cook(files)
        encoded = encoder.preencode_sample(cooked)
        figures = [*_figures(encoded)]
    except UnusableSample as error:
        return Shown(key, (), wrong=str(error))
    learnt = encoded.is_answer.tolist()
    vision = encoder.vision
    return Shown(key, figures, [*_tokens(encoded.ids.tolist(), learnt, tokenizer, vision)])


def _tokens(ids: list[int], learnt: list[bool], tokenizer: Any, vision: Vision) -> Iterator[Token]:
    """Yield the tokens; a placeholder and its repetitions are one."""
    placeholders = tokenizer.convert_tokens_to_ids([vision.image_token, vision.video_token])
    place = 0
    for number, group in itertools.groupby(ids):
        times = sum(1 for _ in group)
        if number in placeholders:
            yield Token(tokenizer.convert_ids_to_tokens(number), False, times, is_placeholder=True)
        else:
            text = tokenizer.decode([number])
            yield from (Token(text, learnt[place + at]) for at in range(times))
        place += times


def _figures(encoded: Any) -> Iterator[Figure]:
    from energon_flagscale.pictures import decoded

    for item, frames in zip(encoded.items, encoded.media, strict=True):
        for number, frame in enumerate(frames):
            height, width = frame.size
            tiles = f", {item.tiles} tile(s)" if item.kind == "image" else f", frame {number + 1}"
            image = decoded(frame)
            image.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
            out = io.BytesIO()
            image.save(out, "JPEG", quality=90)
            yield Figure(out.getvalue(), f"{width} x {height}{tiles}")


def _told(vision: Vision) -> str:
    tower = vision.tower
    cut = (
        f"up to {max(h * w for h, w in vision.tiling.grids) // tower.side**2} tiles" if vision.tiling else ""
    )
    return f"a {tower.kind} tower of {tower.side} pixels and {cut or 'one tile'} per picture"


def main() -> int:
    """Show samples from the command line."""
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Energon folder, or a blend (a YAML file)")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the tokenizer")
    parser.add_argument("--output", type=Path, required=True, help="file for the page")
    parser.add_argument("--split", default="train", help="(default: %(default)s)")
    for name, default, meaning in (
        ("samples", SAMPLES, "number of samples"),
        ("seed", 0, "another number gives other samples"),
        ("seq-length", SEQ_LENGTH, "longer samples are skipped"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{meaning} (default: %(default)s)")
    parser.add_argument(
        "--chat-template",
        metavar="NAME|FILE",
        help="a template by name, or a Jinja file (default: the tokenizer's)",
    )
    add_model_arguments(parser.add_argument_group("pictures: model"))
    arguments = parser.parse_args()
    if not arguments.data.exists():
        raise UserError(f"{arguments.data}: no such folder or file; tools/datasets/llava.py makes one")
    text = show(arguments)
    write_atomic(arguments.output, text)
    print(f"{arguments.output}: {text.count('<section>')} samples")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
