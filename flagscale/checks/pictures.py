"""Rules between the arguments of a training with pictures.

They apply to a program that has all arguments of `megatron.flagscale.vision.arguments`, as `train_llava` has.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from flagscale.checks.gemma import EMBEDDING, LOGIT_CAP
from flagscale.checks.hetero.keys import MESHES
from flagscale.errors import Violation
from flagscale.vision.arguments import OF_PICTURES, vision_of, vision_violations

ENERGON = "megatron-energon"
"""The package that reads the data."""
PARTS = ("freeze_LM", "freeze_ViT", "freeze_projector")
_FOLDERS = "name Energon folders in data_path and valid_path"
_PACKED = "packing_buffer_size chooses which samples share a sequence, and keeps them apart"
_ANSWERS = "only answers have a loss"
_FSDP = "sharded data parallel is not supported with pictures"
_TEXT = "it is for text alone"
REFUSED: Mapping[str, tuple[Any, str]] = {
    **dict.fromkeys((EMBEDDING, LOGIT_CAP), ((None, False), _TEXT)),
    "mock_data": (False, "tools/datasets/pictures_demo.py draws pictures to try it with"),
    "split": (None, "a folder has its own splits (.nv-meta/split.yaml)"),
    **dict.fromkeys(
        (
            "train_data_path",
            "valid_data_path",
            "test_data_path",
            "data_args_path",
            "per_split_data_args_path",
        ),
        (None, _FOLDERS),
    ),
    "reset_position_ids": (False, _PACKED),
    "reset_attention_mask": (False, _PACKED),
    "dataloader_inter_document_masking": (False, _PACKED),
    "eod_mask_loss": (False, _ANSWERS),
    "sft": (False, _ANSWERS),
    "fim_data": (False, _TEXT),
    "per_dataset_sequences_path": (None, _TEXT),
    "perform_rl_step": (False, _TEXT),
    "hybrid_context_parallel": (False, _TEXT),
    "multiple_validation_sets": (False, "valid_path names the data of one evaluation"),
    "full_validation": (False, "eval_iters says how much is evaluated"),
    "iterations_to_skip": ((None, []), "the engine reads what it skips as batches of text"),
    "non_persistent_save_interval": (None, "a run cannot continue its data from such a checkpoint"),
    "dataloader_type": ((None, "external"), "Energon's loader is the only one"),
    "mtp_num_layers": (None, "prediction heads are not supported with pictures"),
    "use_megatron_fsdp": (False, _FSDP),
    "use_torch_fsdp2": (False, _FSDP),
    "hetero_layout": (None, "unequal meshes are not supported with pictures"),
    "overlap_moe_expert_parallel_comm": (False, "its schedule is not supported with pictures"),
    "hybrid_layer_pattern": (None, "only GPT models read pictures"),
    "hybrid_override_pattern": (None, "only GPT models read pictures"),
}
"""By dest: the value that has no effect (or several), and why any other value is refused."""
_AT_LEAST = {
    "packing_buffer_size": 0,
    "shuffle_buffer_size": 0,
    "max_samples_per_sequence": 1,
    "max_skipped_samples": 0,
}
_SIZES = {"img_h": "vision_image_size", "img_w": "vision_image_size", "patch_dim": "vision_patch_size"}
"""Arguments of the engine's own vision models, and ours instead."""


def has_pictures(values: Mapping[str, Any]) -> bool:
    """Return whether arguments (by dest) are those of a training with pictures."""
    return all(name in values for name in OF_PICTURES)


def picture_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield the rules between the arguments (by dest) of a training with pictures that they break."""
    broken = list(vision_violations(values))
    yield from broken
    for name, least in _AT_LEAST.items():
        if (value := values[name]) is not None and value < least:
            yield name, f"`{name}` must be at least {least}, not {value}"
    if all(values[name] for name in PARTS):
        yield PARTS[0], f"{', '.join(f'`{name}`' for name in PARTS)} leave nothing to train; remove one"
    for name, (off, why) in REFUSED.items():
        value = values.get(name)
        if value not in (off if isinstance(off, tuple) else (off,)):
            shown = MESHES if name == "hetero_layout" else name
            yield name, f"`{shown}` cannot be used in a training with pictures: {why}; remove it"
    if values["packing_buffer_size"] and values["transformer_impl"] != "torch":
        what = "`packing_buffer_size` needs `transformer_impl: torch`, whose attention keeps samples apart"
        yield "packing_buffer_size", what
    kind = values.get("tokenizer_type")
    if kind not in (None, "HuggingFaceTokenizer"):
        what = (
            f"`tokenizer_type: {kind}` has no token for a picture: use HuggingFaceTokenizer, and the folder"
        )
        yield "tokenizer_type", f"{what} of a tokenizer that has one (tools/checkpoint/convert.py adds it)"
    length = values.get("seq_length")
    if not broken and isinstance(length, int) and 0 < length <= (least := vision_of(values).tower.features):
        what = f"seq_length {length} has no room for text: a picture becomes at least {least} tokens"
        yield "seq_length", what


def size_violations(values: Mapping[str, Any], given: Collection[str]) -> Iterator[Violation]:
    """Yield the arguments (by dest) that a user has given for the size of a tile, but that nothing reads."""
    for name, ours in _SIZES.items():
        if name in given:
            yield name, f"`{name}` has no effect: the tower has its own size; remove it, or use `{ours}`"
