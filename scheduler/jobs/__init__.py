"""Work that nobody waits for: jobs, files, batches."""
