"""What a gateway process says of itself, to and from the record in etcd. Like `gateway.codec`; decides nothing."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import DecodeError
from penstock.gateway.v1 import presence_pb2

from runtime.errors import InvalidArgument
from runtime.ids import NodeId, Region


@dataclass(frozen=True, slots=True)
class GatewayFacts:
    """One process of a gateway: what does not change while it runs."""

    gateway_id: NodeId
    process: int
    region: Region
    address: str
    """host:port of its inner port."""
    http_address: str = ""
    """host:port on which Envoy brings HTTP; empty: nowhere."""


@dataclass(frozen=True, slots=True)
class GatewayRecord:
    """What one record says. `sequence` grows from record to record."""

    facts: GatewayFacts
    draining: bool
    sequence: int
    wall_time_s: float


def record_bytes(record: GatewayRecord) -> bytes:
    facts = record.facts
    return presence_pb2.GatewayPresence(
        gateway_id=facts.gateway_id,
        process=facts.process,
        region=facts.region,
        address=facts.address,
        draining=record.draining,
        sequence=record.sequence,
        wall_time_ms=int(record.wall_time_s * 1000),
        http_address=facts.http_address,
    ).SerializeToString(deterministic=True)


def read_record(payload: bytes) -> GatewayRecord:
    """Raises InvalidArgument."""
    try:
        message = presence_pb2.GatewayPresence.FromString(payload)
    except DecodeError as error:
        raise InvalidArgument(f"{len(payload)} bytes that are no presence of a gateway") from error
    facts = GatewayFacts(
        NodeId(message.gateway_id), message.process, Region(message.region), message.address, message.http_address
    )
    return GatewayRecord(facts, message.draining, message.sequence, message.wall_time_ms / 1000)
