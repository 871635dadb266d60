"""A dataset on disk or behind a URL: shards, tables, caches, and files derived from it."""
