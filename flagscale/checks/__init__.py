"""The rules of a job, each stated once: pure functions for launcher and worker that import no engine."""
