"""The precision in which vLLM computes a model, if it is lower than that of the model.

As `vllm/config/model.py:_get_and_verify_dtype` of vLLM 0.32: without `dtype`, a model in float32 is computed
in the first precision that the platform supports. That is bfloat16 on CPU and on chips since NVIDIA's Ampere,
and float16 on older ones and for models that return embeddings or scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flagscale.checks.stored_tensors import stored_in

_HALF = ("bfloat16", "float16")
_CODES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""The codes of safetensors, the most precise first: vLLM takes the one that can hold all others."""
_POOLING = (
    *("Classification", "EmbeddingModel", "RewardModel", "ForRewardModeling", "ForTextEncoding"),
    *("BertModel", "RobertaModel"),
)


def lowered_precision(
    dtype: str, config: Mapping[str, Any], folder: Path, *, on_host: bool, pools: bool = False
) -> str:
    """Return that vLLM computes in a lower precision than the model's; "" if not, or if `dtype` was chosen.

    `config` is the content of the folder's `config.json`; `on_host`: whether the model runs on the host's own
    processors; `pools`: see `is_pooling`.
    """
    own = precision_of(config, folder)
    if dtype != "auto" or not own.startswith("float") or own in _HALF:
        return ""
    used = "float16" if pools else "bfloat16"
    other = "" if on_host or pools else " (in float16 on chips without bfloat16)"
    keep = f"; `dtype: {own}` keeps {own}" if own == "float32" else ""
    return f"the model is {own}, but vLLM computes in {used} by default{other}{keep}"


def precision_of(config: Mapping[str, Any], folder: Path) -> str:
    """Return the precision of a model as vLLM sees it: by its `config.json`, else by its weights."""
    parts = (config.get(part) for part in ("text_config", "vision_config", "encoder_config"))
    for part in (config, *parts):
        if isinstance(part, Mapping) and (given := part.get("dtype") or part.get("torch_dtype")):
            return str(given)
    codes = set()
    for file in folder.glob("*.safetensors"):
        try:
            codes |= {one.dtype for one in stored_in(file).values()}
        except ValueError:
            return ""  # already reported
    return next((name for code, name in _CODES.items() if code in codes), "" if codes else "float32")


def is_pooling(config: Mapping[str, Any], runner: Any) -> bool:
    """Return whether vLLM uses a model for embeddings or scores, judged by the name of its class."""
    architectures = config.get("architectures")
    named = architectures if isinstance(architectures, list) else []
    return runner == "pooling" or (runner == "auto" and any(str(one).endswith(_POOLING) for one in named))
