"""The status of a job, for people and for programs."""
