"""Analyses of finished runs: what their models make of images, beyond accuracy."""
