"""What a front door costs, beside LiteLLM's and the least that a Python hop can cost: `python -m benchmarks.gateways`."""
