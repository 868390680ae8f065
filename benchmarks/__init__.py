"""What the bar of the design is measured with. Each file is a command; results land in `benchmarks/results/`."""
