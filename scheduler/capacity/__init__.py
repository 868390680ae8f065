"""Requests that wait for room."""
