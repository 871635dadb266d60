"""What a run is configured by: models of its keys, and reading them from YAML."""
