"""Where `perennial embed` puts vectors: a file a kind, and a line for each in `registry`."""
