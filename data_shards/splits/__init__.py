"""Which identities each learning step learns and which are tested."""
