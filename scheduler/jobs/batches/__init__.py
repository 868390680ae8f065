"""Batches: a job for each line of a file, and files of what came of them."""
