"""Turn an experiment and its job into a launch plan and scripts."""
