"""Finished models at work on CPU: embedding shards and test sets."""
