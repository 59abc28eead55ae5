"""Compare tiles of pictures with those of transformers: `python -m benchmarks.picture_tiles`.

Pixels at the real sizes of LLaVA-1.5 and LLaVA-OneVision must be equal, else it ends with an error. The CPU
time is that of resizing and cutting alone; transformers' includes normalising, which the tower does for us.
Three rounds, alternating, medians.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

SIZES = ((480, 640), (1080, 1920), (333, 77), (2000, 3000), (384, 384), (1, 700), (1200, 1100), (100, 3000))
ROUNDS = 3


def visions() -> dict[str, Any]:
    """Return the models by their names in the table."""
    from flagscale.vision.arguments import usual_grids
    from flagscale.vision.tiling import Tiling, Vision
    from flagscale.vision.tower import TOWERS

    clip, siglip = TOWERS["clip"], TOWERS["siglip"]
    return {
        "LLaVA-OneVision, SigLIP 384, up to 37 tiles": Vision(siglip, Tiling(usual_grids(siglip.side))),
        "LLaVA-1.5, CLIP 336": Vision(clip),
        "LLaVA-1.5, CLIP 336, `pad`": Vision(clip, fit="pad"),
        "SigLIP 384": Vision(siglip),
    }


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds of a call, and its result."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def row(vision: Any) -> tuple[int, float, float]:
    """Return the number of equal tiles, and the CPU seconds of both sides for all sizes."""
    from energon_flagscale.pictures import picture_tiles
    from flagscale_testing.processors import image_processor, noise, normalised, processed

    processor, pictures, equal = image_processor(vision), [noise(*size) for size in SIZES], 0
    rounds = []
    for _ in range(ROUNDS):
        ours, theirs, equal = 0.0, 0.0, 0
        for picture in pictures:
            spent, tiles = seconds(lambda picture=picture: picture_tiles(picture, vision))  # type: ignore[misc]
            ours += spent
            spent, pixels = seconds(lambda picture=picture: processed(processor, [picture]))  # type: ignore[misc]
            theirs += spent
            if not np.array_equal(normalised(tiles, vision), pixels):
                raise SystemExit(f"the pixels of {picture.height}x{picture.width} differ")
            equal += len(tiles)
        rounds.append((ours, theirs))
    return equal, *(statistics.median(side) for side in zip(*rounds, strict=True))


def main() -> None:
    """Print the table."""
    print("| model | tiles, all equal | CPU s, ours | transformers | ratio |\n|---|---|---|---|---|")
    for name, vision in visions().items():
        equal, ours, theirs = row(vision)
        print(f"| {name} | {equal} | {ours:.2f} | {theirs:.2f} | {ours / theirs:.2f} |")


if __name__ == "__main__":
    main()
