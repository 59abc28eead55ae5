"""Rules of vLLM for models that read pictures, and how it reads them unlike a training with FlagScale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flagscale.checks.model_folder import mapping_of, sees_pictures
from flagscale.checks.picture_folder import is_llava
from flagscale.errors import Violation, nearest

_LIMITS, _PROCESSOR, _FAST = "limit_mm_per_prompt", "mm_processor_kwargs", "use_fast"
_KINDS = ("audio", "image", "video", "vision_chunk")


def limit_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield limits that vLLM 0.32 refuses, or ignores because it knows no such input."""
    for kind, limit in mapping_of(values.get(_LIMITS)).items():
        count = limit.get("count", 0) if isinstance(limit, Mapping) else limit
        if kind not in _KINDS:
            hint = nearest(str(kind), _KINDS) or f"known: {', '.join(_KINDS)}"
            yield _LIMITS, f"`{_LIMITS}` limits `{kind}`, which is no input of a model ({hint})"
        elif isinstance(count, int) and count < 0:
            yield _LIMITS, f"`{_LIMITS}` limits `{kind}` to {count}; it must be at least 0"


def tower_violations(values: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield why the vision tower that a `config.json` describes cannot be divided among ranks."""
    tower, ranks = config.get("vision_config"), values["tensor_parallel_size"]
    if not is_llava(config) or not isinstance(tower, Mapping) or values.get("mm_encoder_tp_mode") == "data":
        return
    heads = tower.get("num_attention_heads")
    if isinstance(heads, int) and heads % ranks:
        what = f"the vision tower's {heads} attention heads cannot be divided evenly by {ranks}"
        yield "tensor_parallel_size", f"{what}; with `mm_encoder_tp_mode: data` it need not be divided"


def picture_remarks(values: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield in what a server of this `config.json` would see other pixels than the training saw.

    transformers 5 has two processors, which enlarge and shrink a little differently. Training uses that of
    Pillow, and vLLM that of torchvision.
    """
    is_chosen = _FAST in mapping_of(values.get(_PROCESSOR))
    if is_llava(config) and sees_pictures(values) and not is_chosen:
        what = (
            "vLLM scales pictures with torchvision, whose pixels differ a little from those of the training"
        )
        yield _PROCESSOR, f"{what} (Pillow's); `{_PROCESSOR}: {{{_FAST}: false}}` makes them equal"
