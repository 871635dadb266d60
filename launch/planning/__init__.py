"""What a run would take, worked out without data, GPUs or other machines."""
