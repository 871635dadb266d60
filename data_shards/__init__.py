"""Original files to batches: sources, WebDataset shards, the sample order and the DALI pipeline."""
