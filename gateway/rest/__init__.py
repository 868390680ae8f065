"""The Open Inference Protocol over HTTP (/v2): JSON and binary tensors in and out, for the clients of Triton and KServe."""
