"""Transformer layers on torch's own kernels (`--transformer-impl torch`), for any chip and any layout."""
