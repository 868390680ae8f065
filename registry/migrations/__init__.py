"""How a registry database came to be what `schema.py` says. Run by `database.py`, never by hand."""
