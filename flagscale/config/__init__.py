"""From composed YAML to frozen, checked values: the experiment level (typed) and the task level (engine arguments)."""
