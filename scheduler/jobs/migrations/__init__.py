"""How the tables of jobs became what they are, step by step."""
