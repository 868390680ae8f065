"""How many copies of a model there should be, and on which workers."""
