"""Megatron-core: an experiment becomes a training job."""
