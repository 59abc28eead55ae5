"""Checkpoints that are either complete or absent: saving, choosing one to resume from, and the manifest."""
