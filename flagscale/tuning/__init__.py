"""The loop of trials of `action=auto_tune`, above everything that starts jobs."""
