"""The vision tower: a transformer that turns a tile of pixels into features. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Tower:
    """The architecture of a vision tower; its features are the output of the last of `layers`, not normed.

    Models that read the output of an earlier layer (LLaVA-1.5: the last but one) are described without the
    layers after it. `side` and `patch_size` are in pixels; `mean` and `std` belong to pixels from 0 to 1.
    """

    kind: str
    """"clip" (a class token, and a norm before the layers) or "siglip" (neither)."""
    side: int
    patch_size: int
    layers: int
    hidden: int
    ffn: int
    heads: int
    norm_eps: float
    activation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def has_class_token(self) -> bool:
        return self.kind == "clip"

    @property
    def rows(self) -> int:
        """The rows, and columns, of features of a tile; pixels that fill no whole patch are not seen."""
        return self.side // self.patch_size

    @property
    def features(self) -> int:
        """The features of a tile, without the class token."""
        return self.rows**2


TOWERS: Mapping[str, Tower] = {
    # openai/clip-vit-large-patch14-336 without its last layer, as LLaVA-1.5 reads it
    "clip": Tower(
        kind="clip",
        side=336,
        patch_size=14,
        layers=23,
        hidden=1024,
        ffn=4096,
        heads=16,
        norm_eps=1e-5,
        activation="quick_gelu",
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
    ),
    # google/siglip-so400m-patch14-384 without its last layer, as LLaVA-OneVision reads it
    "siglip": Tower(
        kind="siglip",
        side=384,
        patch_size=14,
        layers=26,
        hidden=1152,
        ffn=4304,
        heads=16,
        norm_eps=1e-6,
        activation="gelu_pytorch_tanh",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    ),
}
"""The tower of each `vision_model_type`, by which single sizes can be replaced."""
