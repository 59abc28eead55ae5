"""The metrics that a run reports: metrics.jsonl and the progress line."""
