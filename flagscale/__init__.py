"""FlagScale's control plane: everything around the engine, from YAML to supervised processes.

Nothing in this package imports torch, megatron, vllm or transformers, so that `run.py` answers at once.
"""

__version__ = "0.2.0"

EXTENSIONS = ("vllm", "megatron-energon")
"""The folders of a clone that hold packages of ours under unique names."""
