"""How a registry database came to be what `schema.py` says. Run by `runtime.database`, never by hand."""
