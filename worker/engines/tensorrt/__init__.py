"""TensorRT: plans built, opened and run."""
