"""The endpoint picker: which worker an Envoy in front of the workers should send a request to."""
