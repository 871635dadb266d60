"""Batches to models: embedders, the sharded classifier, methods, the training loop, evaluation."""
