"""How the tables of the request log became what they are, step by step."""
