"""The routing policy, and what it comes to for one request."""
