"""Training runs on a few CPU ranks: as a job, or forked from one process that has imported everything."""
