"""Who waits for a place, and who is next."""
