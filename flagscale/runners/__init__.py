"""Runners, which provide the hosts of a job and start, report and end it: ssh, cloud."""
