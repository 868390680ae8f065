"""Models behind somebody else's API: their copies, and what an operator permits."""
