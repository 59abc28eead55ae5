"""What a run reports: metrics.jsonl and the progress line."""
