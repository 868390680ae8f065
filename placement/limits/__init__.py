"""How much may be used, by everybody together: what is left, and who gets how much of it."""
