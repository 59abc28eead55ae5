"""The manifest of a plan for Kubernetes, whose pods run the job by `type: cloud`."""
