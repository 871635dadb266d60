"""The live page: what a folder of runs says of itself now, served read-only over HTTP."""
