"""Steering a training while it runs: data that is left out, bad losses, and ranks that are slow."""
