"""The front: edge services, admission, routing to workers, and Envoy's control plane."""
