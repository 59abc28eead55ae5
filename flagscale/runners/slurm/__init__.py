"""`runner.type: slurm`: inside an allocation of Slurm, or submitted to its queue."""
