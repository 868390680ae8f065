"""Models, their versions, aliases and signers."""
