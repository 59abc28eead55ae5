"""Conversations as text: templates, messages with pictures, and which characters a model learns to answer."""
