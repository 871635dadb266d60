"""Perennial for Python."""
