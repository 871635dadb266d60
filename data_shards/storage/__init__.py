"""A dataset on disk or behind a URL: shards, tables, caches, and what is kept beside them."""
