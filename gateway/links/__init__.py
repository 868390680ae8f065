"""The gateway's half of the inner hop: long-lived Execute streams to workers, many calls on each."""
