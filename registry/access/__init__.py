"""Who calls the registry, and what it may do."""
