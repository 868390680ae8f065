"""How much callers may ask, over all gateways together: what this gateway was given of it, and how it uses that."""
