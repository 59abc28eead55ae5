"""vLLM: turn an experiment into servers or batch inference."""
