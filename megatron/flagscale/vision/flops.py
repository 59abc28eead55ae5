"""The floating-point operations of tower and projector. Standard library only."""

from __future__ import annotations

from flagscale.vision.tiling import Vision


def tile_flops(vision: Vision, width: int, *, is_trained: bool) -> float:
    """Return the operations that a tile needs in a step, with a language model of this width.

    As for the language model, the backward pass counts twice; a tower that is not trained has none.
    """
    tower = vision.tower
    tokens = tower.features + tower.has_class_token
    weights = 4 * tower.hidden**2 + 2 * tower.hidden * tower.ffn
    layers = tower.layers * (2 * tokens * weights + 4 * tokens**2 * tower.hidden)
    patches = 2 * tower.features * 3 * tower.patch_size**2 * tower.hidden
    projector = 2 * tower.features * (tower.hidden * width + width**2)
    return (layers + patches) * (3 if is_trained else 1) + projector * 3
