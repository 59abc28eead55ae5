"""Command-line tools for training: prepare data, convert checkpoints, inspect a run."""
