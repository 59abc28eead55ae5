"""From a job to running hosts: place (decide), render (scripts), rundir (files), transport and launcher (effects)."""
