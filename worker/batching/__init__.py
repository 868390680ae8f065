"""What runs together: queues, batches, sequences, and the copies of tensor models that they make."""
