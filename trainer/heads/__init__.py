"""The classifier whose rows are spread over the ranks, and the losses that run on it."""
