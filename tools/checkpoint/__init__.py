"""Command lines around checkpoints; the work is done in `megatron.flagscale.convert`."""
