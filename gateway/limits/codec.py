"""Messages of the limits to nouns and back. With the servicers and clients, the only place that sees them. Decides nothing."""

from __future__ import annotations

from collections.abc import Iterable

from penstock.registry.v1 import limits_pb2 as registry_pb2
from penstock.scheduler.v1 import limits_pb2 as pb

from gateway.limits.types import Limit, Scope, WhenUnsure
from placement.limits.types import AllowanceId, Ask, Grant, Kind

_KINDS = {
    Kind.REQUESTS: pb.ALLOWANCE_KIND_REQUESTS,
    Kind.TOKENS: pb.ALLOWANCE_KIND_TOKENS,
    Kind.CONCURRENT: pb.ALLOWANCE_KIND_CONCURRENT,
    Kind.REQUESTS_PER_DAY: pb.ALLOWANCE_KIND_REQUESTS_PER_DAY,
    Kind.TOKENS_PER_DAY: pb.ALLOWANCE_KIND_TOKENS_PER_DAY,
}
_SCOPES: dict[int, Scope] = {
    registry_pb2.LIMIT_SCOPE_EACH_TENANT: Scope.EACH_TENANT,
    registry_pb2.LIMIT_SCOPE_EACH_KEY: Scope.EACH_KEY,
}


def limit_of(message: registry_pb2.Limit) -> Limit:
    return Limit(
        message.limit_id,
        message.tenant,
        message.key_id,
        message.model,
        _SCOPES.get(message.scope, Scope.TOGETHER),
        max(0.0, message.requests_per_s),
        message.burst,
        message.tokens_per_min,
        message.concurrent_requests,
        message.requests_per_day,
        message.tokens_per_day,
        WhenUnsure.REFUSE if message.when_unsure == registry_pb2.WHEN_UNSURE_REFUSE else WhenUnsure.OPEN,
        message.generation,
    )


def share_request(process: str, asks: Iterable[Ask]) -> pb.ShareRequest:
    return pb.ShareRequest(process=process, asks=[_ask(each) for each in asks])


def grants_of(message: pb.ShareResponse) -> list[Grant]:
    return [
        Grant(AllowanceId(each.allowance), each.granted, each.remaining, each.retry_after_ms / 1000, each.holders)
        for each in message.grants
    ]


def _ask(ask: Ask) -> pb.AllowanceAsk:
    message = pb.AllowanceAsk(allowance=ask.allowance, used=ask.used, returned=ask.returned, wanted=ask.wanted)
    if (terms := ask.terms) is not None:
        message.terms.kind, message.terms.units = _KINDS[terms.kind], terms.units
        message.terms.burst, message.terms.generation = terms.burst, terms.generation
        message.held, message.resumed = ask.held, ask.resumed
    return message
