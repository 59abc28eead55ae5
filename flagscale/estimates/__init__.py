"""Estimates of a configuration before anything starts, and what people and programs read of them."""
