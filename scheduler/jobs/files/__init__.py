"""Files of applications: what batches read, and what they write."""
