"""CUDA: the driver, a fake beside it, and buffers that are kept."""
