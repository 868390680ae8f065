"""Limits that hold over all gateways: one scheduler gives out what there is."""
