"""Calls of clients that trust this worker and nobody on the way."""
