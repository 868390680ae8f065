"""Models in processes of their own, and whose code may run there."""
