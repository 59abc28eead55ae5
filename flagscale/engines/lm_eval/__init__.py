"""lm-evaluation-harness: scores of models on tasks (`evaluate`), through `megatron.flagscale.evaluation`."""
