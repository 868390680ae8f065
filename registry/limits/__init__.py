"""Limits: how much of the mesh somebody may use."""
