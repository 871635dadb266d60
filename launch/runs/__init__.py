"""A run on disk: its folder's layout, ledger, lease, records, and how others name its models."""
