"""Transformer layers on torch's own kernels (`--transformer-impl torch`): any chip, every parallel layout."""
