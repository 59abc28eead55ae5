"""vLLM: an experiment becomes servers or batch inference."""
