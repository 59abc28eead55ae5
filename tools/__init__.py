"""Command lines around training: prepare data, look at a run."""
