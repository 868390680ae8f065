"""Messages of the limits to nouns and back. With the servicer, the only place that sees them. Decides nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable

from google.protobuf.message import DecodeError
from penstock.scheduler.v1 import limits_pb2 as pb

from placement.limits.book import Spending
from placement.limits.types import AllowanceId, Ask, Grant, Kind, Terms
from runtime.errors import InvalidArgument

MAX_ASKS = 2_000
MAX_NAME_CHARACTERS = 512
_KINDS: dict[int, Kind] = {
    pb.ALLOWANCE_KIND_REQUESTS: Kind.REQUESTS,
    pb.ALLOWANCE_KIND_TOKENS: Kind.TOKENS,
    pb.ALLOWANCE_KIND_CONCURRENT: Kind.CONCURRENT,
    pb.ALLOWANCE_KIND_REQUESTS_PER_DAY: Kind.REQUESTS_PER_DAY,
    pb.ALLOWANCE_KIND_TOKENS_PER_DAY: Kind.TOKENS_PER_DAY,
}


def asks_of(message: pb.ShareRequest) -> list[Ask]:
    """Raises InvalidArgument for what no gateway says."""
    if len(message.asks) > MAX_ASKS:
        raise InvalidArgument(f"{len(message.asks)} asks are too many for one message; at most {MAX_ASKS} are heard")
    return [_ask(each) for each in message.asks]


def share_response(grants: Iterable[Grant]) -> pb.ShareResponse:
    return pb.ShareResponse(
        grants=[
            pb.AllowanceGrant(
                allowance=each.allowance,
                granted=each.granted,
                remaining=each.remaining,
                retry_after_ms=math.ceil(each.retry_after_s * 1000),
                holders=each.holders,
            )
            for each in grants
        ]
    )


def led_at(address: str) -> pb.ShareResponse:
    """Another one leads."""
    return pb.ShareResponse(leader_address=address)


def spending_bytes(spending: Spending) -> bytes:
    return pb.DaySpending(allowance=spending.allowance, day=spending.day, units=spending.units).SerializeToString()


def spending_of(raw: bytes) -> Spending | None:
    """None where the bytes are none."""
    try:
        message = pb.DaySpending.FromString(raw)
    except DecodeError:
        return None
    return Spending(AllowanceId(message.allowance), message.day, message.units) if message.allowance else None


def _ask(message: pb.AllowanceAsk) -> Ask:
    if not 0 < len(message.allowance) <= MAX_NAME_CHARACTERS:
        raise InvalidArgument(
            f"an allowance has a name of {len(message.allowance)} characters; 1 to {MAX_NAME_CHARACTERS} it is"
        )
    terms = _terms(message.terms) if message.HasField("terms") else None
    return Ask(
        AllowanceId(message.allowance),
        terms,
        message.held,
        message.resumed,
        message.used,
        message.returned,
        message.wanted,
    )


def _terms(message: pb.AllowanceTerms) -> Terms:
    kind = _KINDS.get(message.kind)
    if kind is None:
        raise InvalidArgument(f"this scheduler knows of no allowance of kind {message.kind}")
    if not (math.isfinite(message.units) and 0 < message.units < 2**62):
        raise InvalidArgument(f"an allowance of {message.units} units is none")
    return Terms(kind, message.units, message.burst, message.generation)
