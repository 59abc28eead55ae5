"""From an experiment and a job to a launch plan and its scripts."""
