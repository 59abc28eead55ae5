"""Command lines for checkpoints; the work is done in `megatron.flagscale.convert`."""
