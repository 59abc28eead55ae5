"""The configuration of BAAI's Aquila folders, in a module of its own: engines send it to their processes."""

from __future__ import annotations

from transformers import LlamaConfig


class AquilaConfig(LlamaConfig):
    """Has the keys of Llama."""

    model_type = "aquila"
