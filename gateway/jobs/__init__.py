"""Jobs at the gateway: done for the schedulers that keep them, and offered to applications."""
