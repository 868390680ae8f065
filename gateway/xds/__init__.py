"""Envoy's control plane: what the edge is, as values, and the discovery stream that hands it out.

`types` says what an operator decides, `resources` turns it into a `snapshot`, `subscription` decides what a stream is owed,
`servicer` carries it, `bootstrap` and `envoy` start the process at the other end. Nothing here sees a request of a client.
"""
