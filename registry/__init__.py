"""The registry: models and their signed versions, the files they are made of, tenants and API keys."""
