"""The KServe service at the edge: inference passes through untouched, everything else is answered for the whole fleet."""
