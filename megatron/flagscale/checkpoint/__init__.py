"""Checkpoints that are complete or not there: saving, choosing one to resume from, and their manifest."""
