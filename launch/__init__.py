"""Runs: the command line, configuration, phases, and what Ray does in each of them."""
