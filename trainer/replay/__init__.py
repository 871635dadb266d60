"""Replay without images: features of earlier steps' identities, drawn anew in every iteration."""
