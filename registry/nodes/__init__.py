"""Machines that are part of the mesh: enrolled, renewed, revoked."""
