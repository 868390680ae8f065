"""Sequences of requests, which Triton's clients number: a model keeps state between the requests of one, at one worker.

Decides what keeps them together. Sequences of different tenants are different ones, whatever their numbers.
"""

from __future__ import annotations

from gateway.wire import RequestHead
from placement.types import Request
from runtime.ids import ModelName, ModelVersion, Region

SEQUENCE_END = "sequence_end"
"""The parameter by which a client says that a sequence needs its state no more."""


def request_of(head: RequestHead, version: ModelVersion, region: Region, tenant: str) -> Request:
    """What has to be placed. A request of a sequence goes to the worker with its state, and to no other while that is there."""
    sequence = head.session_key
    if not sequence:
        return Request(ModelName(head.model), version, region)
    return Request(ModelName(head.model), version, region, f"{tenant}/{head.model}/{sequence}", sticky=True)
