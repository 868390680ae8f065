"""Which scheduler leads which regions."""
