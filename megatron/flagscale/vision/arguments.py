"""The arguments of a training with pictures; those of the vision part are read by `flagscale.vision`."""

from __future__ import annotations

import argparse

from flagscale.vision.arguments import FITS, FLAT, SINGLE, TILED, UNPAD
from flagscale.vision.tower import TOWERS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `megatron.flagscale.train_llava` to a parser."""
    add_model_arguments(parser.add_argument_group("pictures: model"))
    _add_training(parser.add_argument_group("pictures: training"))
    _add_data(parser.add_argument_group("pictures: data"))


def add_model_arguments(group: argparse._ArgumentGroup) -> None:
    """Add those that `flagscale.vision.arguments.vision_of` reads."""
    group.add_argument(
        "--vision-model-type",
        choices=[*TOWERS],
        default="clip",
        help="The vision tower: CLIP-L of 336 pixels, or SigLIP-so400m of 384.",
    )
    for name, what in (
        ("vision-image-size", "side of a tile in pixels"),
        ("vision-patch-size", "side of a patch in pixels"),
        ("vision-num-layers", "number of layers that are computed"),
        ("vision-hidden-size", "width"),
        ("vision-ffn-hidden-size", "width of the MLP"),
        ("vision-num-attention-heads", "number of attention heads"),
    ):
        group.add_argument(
            f"--{name}", type=int, metavar="N", help=f"Of the tower, if it is another: {what}."
        )
    group.add_argument(
        "--image-aspect-ratio",
        default=FITS[0],
        metavar="KIND",
        help="`square`: one tile per picture, cut or stretched as the tower's own processor does (default); "
        "`pad`: one tile, padded to a square; `anyres_max_N`: tiles as in LLaVA-OneVision, whose features "
        "are shrunk to those of about N tiles.",
    )
    group.add_argument(
        "--mm-patch-merge-type",
        choices=[FLAT, UNPAD],
        default=FLAT,
        help=f"`{UNPAD}` with tiles: without the features of padding, and with a newline after each row.",
    )
    group.add_argument(
        "--image-grid-pinpoints",
        metavar="GRIDS",
        help="The grids of tiles to choose from: [[384, 768], ...] in pixels, or (1x1),...,(6x6) in tiles "
        "(default).",
    )
    group.add_argument(
        "--several-images",
        choices=[TILED, SINGLE],
        default=TILED,
        help=f"With tiles, how several pictures of one sample are laid out: `{TILED}` each, as vLLM does, or "
        f"a `{SINGLE}` tile each, as the published LLaVA-OneVision was trained.",
    )
    group.add_argument("--image-token", default="<image>", help="The token that stands for a picture.")
    group.add_argument("--video-token", default="<video>", help="The token that stands for a video.")
    group.add_argument(
        "--video-frames",
        type=int,
        default=8,
        metavar="N",
        help="The most frames of a video, evenly spaced (default: %(default)s).",
    )


def _add_training(group: argparse._ArgumentGroup) -> None:
    for name, what in (
        ("LM", "language model"),
        ("ViT", "vision tower"),
        ("projector", "projector and the newline"),
    ):
        group.add_argument(f"--freeze-{name}", action="store_true", help=f"Do not train the {what}.")


def _add_data(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--valid-path",
        nargs="+",
        metavar="FOLDER",
        help="Energon folders or blends for validation (default: the `val` split of --data-path, if any).",
    )
    group.add_argument(
        "--packing-buffer-size",
        type=int,
        default=0,
        metavar="N",
        help="Pack several samples into each sequence, chosen among N (default: 0, one sample per sequence).",
    )
    group.add_argument(
        "--shuffle-buffer-size",
        type=int,
        default=100,
        metavar="N",
        help="The samples among which the next one is drawn; 0: in order (default: %(default)s).",
    )
    group.add_argument(
        "--max-samples-per-sequence",
        type=int,
        default=100,
        metavar="N",
        help="The samples that are read in a row from one place of a shard (default: %(default)s).",
    )
    group.add_argument(
        "--max-skipped-samples",
        type=int,
        metavar="N",
        help="End the training if more samples than this cannot be used (default: no limit; they are counted "
        "in the metrics).",
    )
