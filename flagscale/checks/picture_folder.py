"""Check the folder of a LLaVA or LLaVA-OneVision model for what only such a model needs."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

LLAVA = ("llava", "llava_onevision")
"""The `model_type` of models whose folders are described here."""
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_OUTPUTS = ("language_model.lm_head.", "lm_head.")
_EMBEDDINGS = ("language_model.model.embed_tokens.weight", "model.language_model.embed_tokens.weight")
_TOWERS, _IN_VLLM = ("vision_tower.", "model.vision_tower."), "vision_model."


def is_llava(config: Mapping[str, Any]) -> bool:
    """Return whether the content of a `config.json` describes such a model."""
    return config.get("model_type") in LLAVA


def tensor_problems(config: Mapping[str, Any], stored: Collection[str]) -> Iterator[str]:
    """Yield why vLLM cannot load tensors with these names, or would compute with others than transformers.

    transformers 5 writes the tower's names without `vision_model.`, reads both, and vLLM 0.32 reads only the
    others; it accepts a missing output layer without a message.
    """
    for tower in _TOWERS:
        names = sorted(name for name in stored if name.startswith(tower))
        if names and not any(name.startswith(f"{tower}{_IN_VLLM}") for name in names):
            renamed = f"{tower}{_IN_VLLM}{names[0].removeprefix(tower)}"
            yield f"vLLM does not know the tower's names: rename `{names[0]}` to `{renamed}`, and so on"
    text = config.get("text_config")
    parts = (config, text if isinstance(text, Mapping) else {})
    is_tied = any(part.get("tie_word_embeddings") for part in parts)
    has_output = any(name.startswith(_OUTPUTS) for name in stored)
    if not is_tied and not has_output and any(name in stored for name in _EMBEDDINGS):
        what = f"contains no output layer ({_OUTPUTS[0]}weight), and `tie_word_embeddings` is not true"
        yield f"{what}: the engine would use arbitrary values; set it to true if the model is tied"


def processor_problem(folder: Path) -> str:
    """Return that the folder does not say how a picture becomes tiles; "" if it does."""
    if any(os.path.isfile(folder / name) for name in PROCESSORS):
        return ""
    return f"contains no {' or '.join(PROCESSORS)}, which say how a picture becomes tiles"
