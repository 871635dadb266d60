"""Sending a run elsewhere: ssh, Slurm, Kubernetes, a Ray cluster's jobs."""
