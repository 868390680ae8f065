"""Which worker takes a request: filters, scores, strategies, and what one caller remembers of the fleet."""
