"""Folders of small random models with pictures, as transformers saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flagscale_testing.llava_models import LlavaModel, small_vision
from flagscale_testing.pictures import IMAGE, VIDEO, write_tokenizer

MODELS = {
    "LLaVA: CLIP, Llama": LlavaModel(small_vision("clip", False), "Llama"),
    "LLaVA: SigLIP, Qwen2": LlavaModel(small_vision("siglip", False), "Qwen2"),
    "OneVision: SigLIP, Qwen2, tied": LlavaModel(small_vision("siglip", True, layers=2), "Qwen2", tied=True),
    "OneVision: SigLIP, Qwen3": LlavaModel(small_vision("siglip", True, side=45), "Qwen3"),
    "OneVision: CLIP, Llama": LlavaModel(small_vision("clip", True, patch_size=10), "Llama"),
}
"""A model by its form, its tower and its language model; sides are no multiples of a patch."""


def write_folder(name: str, folder: Path, **keys: Any) -> Any:
    """Write one of `MODELS` with its tokenizer, and return it; `keys` replace those of its configuration."""
    from transformers import AutoTokenizer

    model = MODELS[name].of_transformers()
    write_tokenizer(folder)
    ids = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids([IMAGE, VIDEO])
    # An odd number of rows, more than there are tokens.
    model.resize_token_embeddings(ids[1] + 6, mean_resizing=False)
    model.config.image_token_index = ids[0]
    if MODELS[name].vision.tiling:
        model.config.video_token_index = ids[1]
    for key, value in keys.items():
        setattr(model.config, key, value)
    model.save_pretrained(folder)
    return model
