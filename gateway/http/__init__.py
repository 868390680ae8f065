"""HTTP/1.1 from Envoy straight to the servicers, past gRPC: a third of what transcoding costs (docs/performance.md)."""
