"""The order of training samples: pure functions of (seed, epoch, position)."""
