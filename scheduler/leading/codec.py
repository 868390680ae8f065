"""penstock.scheduler.v1.Leader: as a candidate leaves it under its key, and as watchers of the fleet are told."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.message import DecodeError
from penstock.scheduler.v1 import scheduler_pb2

from runtime.ids import NodeId, Region
from scheduler.leading.types import Leader


def leader_bytes(leader: Leader) -> bytes:
    return _message(leader).SerializeToString()


def leader_of(raw: bytes, regions: Iterable[Region], term: int) -> Leader | None:
    """With the regions that it has and the term of its key, whatever it said of both; None where the bytes are no leader."""
    try:
        message = scheduler_pb2.Leader.FromString(raw)
    except DecodeError:
        return None
    return Leader(NodeId(message.scheduler_id), message.address, tuple(regions), term)


def leader_list(leaders: Iterable[Leader]) -> scheduler_pb2.LeaderList:
    return scheduler_pb2.LeaderList(leaders=[_message(leader) for leader in leaders])


def _message(leader: Leader) -> scheduler_pb2.Leader:
    return scheduler_pb2.Leader(
        scheduler_id=leader.scheduler_id, address=leader.address, regions=leader.regions, term=leader.term
    )
