"""Who gives the hosts of a job, starts it, reports on it and ends it: ssh, cloud."""
