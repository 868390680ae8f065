"""The shared kernel: errors, clock, config, identity, etcd session, serving, telemetry."""
