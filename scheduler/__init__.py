"""The scheduler: who is in the fleet, and what should run where."""
