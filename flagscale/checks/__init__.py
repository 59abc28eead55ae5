"""Every rule of a job, once: pure functions that the launcher and the worker call; no engine is imported."""
