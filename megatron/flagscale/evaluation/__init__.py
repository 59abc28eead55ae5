"""Evaluation: scores of models on tasks of lm-evaluation-harness (`task.type: evaluate`)."""
