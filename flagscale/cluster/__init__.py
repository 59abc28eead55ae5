"""Which hosts a job runs on."""
