"""From composed YAML to frozen, checked values: the experiment level and the task level."""
