"""Datasets written, whole or not at all: imported, merged, sharded, into a folder or a bucket."""
