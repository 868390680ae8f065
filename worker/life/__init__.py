"""The life of copies: orders, loads, memory, and letting go."""
