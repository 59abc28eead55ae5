"""A real Slurm cluster of virtual nodes on this machine."""
