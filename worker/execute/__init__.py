"""The inner hop: Execute streams for gateways, and what else WorkerService does."""
