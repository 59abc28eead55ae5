"""The keys of `config.json` that limit the length of a sequence, with their defaults, for the catalog."""

from __future__ import annotations

from typing import Any

LENGTH_KEYS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length"),
    *("max_target_positions", "max_sequence_length", "max_seq_length", "seq_len"),
)
"""Keys of `config.json` from which vLLM derives the longest sequence of a model."""


def default_lengths() -> dict[str, dict[str, Any]]:
    """Return, by model type, the keys that limit the length of a sequence and have a default in its class.

    The value is the default, or the name of another key if the class takes this one as another name of that.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING
    from transformers.models.auto import modeling_auto as models

    text, images = models.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, models.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    keys = (*LENGTH_KEYS, "sliding_window", "use_sliding_window")
    found = {}
    for model_type in sorted({*text, *images, "aquila"}):
        try:
            config = CONFIG_MAPPING[model_type]().get_text_config()
        except (StrictDataclassError, KeyError, TypeError, ValueError, AttributeError):
            continue  # no class, or one without defaults
        values = {key: getattr(config, key, None) for key in keys}
        aliases = {key: name for key, name in config.attribute_map.items() if {key, name} <= set(keys)}
        if known := {key: value for key, value in {**values, **aliases}.items() if value is not None}:
            found[model_type] = known
    return found
