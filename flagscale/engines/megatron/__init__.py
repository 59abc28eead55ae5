"""Megatron-core: turn an experiment into a training job."""
