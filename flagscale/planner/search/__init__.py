"""The best plans of a training on a cluster: candidates, their costs, and the plan as a task file."""
