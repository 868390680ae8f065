"""The pure heart: fleet view + request + now → decision with its reason."""
