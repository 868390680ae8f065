"""Between the wire's messages and the nouns of limits. Decides nothing but what cannot be expressed inside."""

from __future__ import annotations

from penstock.registry.v1 import limits_pb2

from registry.limits.types import Amounts, Limit, LimitScope, LimitSubject, LimitWish, Setter, WhenUnsure
from runtime.errors import InvalidArgument
from runtime.ids import KeyId, ModelName, TenantId

_SCOPES = {
    limits_pb2.LIMIT_SCOPE_UNSPECIFIED: LimitScope.TOGETHER,
    limits_pb2.LIMIT_SCOPE_EACH_TENANT: LimitScope.EACH_TENANT,
    limits_pb2.LIMIT_SCOPE_EACH_KEY: LimitScope.EACH_KEY,
}
_SCOPE_NUMBERS = {scope: number for number, scope in _SCOPES.items()}
_WHEN_UNSURE = {
    limits_pb2.WHEN_UNSURE_UNSPECIFIED: WhenUnsure.SHARE,
    limits_pb2.WHEN_UNSURE_REFUSE: WhenUnsure.REFUSE,
}
_UNSURE_NUMBERS = {when: number for number, when in _WHEN_UNSURE.items()}


def wish_of(request: limits_pb2.SetLimitRequest, set_by: Setter) -> LimitWish:
    """Raises InvalidArgument where there is no limit in it, or a scope or way that does not exist."""
    if not request.HasField("limit"):
        raise InvalidArgument("the request has no limit; say whom it is for, and how much that may be")
    message = request.limit
    scope, when_unsure = _SCOPES.get(message.scope), _WHEN_UNSURE.get(message.when_unsure)
    if scope is None:
        raise InvalidArgument(f"scope {message.scope}: one of {', '.join(limits_pb2.LimitScope.keys())} is expected")
    if when_unsure is None:
        raise InvalidArgument(
            f"when_unsure {message.when_unsure}: one of {', '.join(limits_pb2.WhenUnsure.keys())} is expected"
        )
    subject = LimitSubject(TenantId(message.tenant), KeyId(message.key_id), ModelName(message.model), scope, set_by)
    return LimitWish(subject, _amounts_of(message), when_unsure, message.limit_id)


def limit_message(limit: Limit) -> limits_pb2.Limit:
    subject, amounts = limit.subject, limit.amounts
    return limits_pb2.Limit(
        limit_id=limit.limit_id,
        tenant=subject.tenant,
        key_id=subject.key_id,
        model=subject.model,
        scope=_SCOPE_NUMBERS[subject.scope],
        requests_per_s=amounts.requests_per_s,
        burst=amounts.burst,
        tokens_per_min=amounts.tokens_per_min,
        concurrent_requests=amounts.concurrent_requests,
        requests_per_day=amounts.requests_per_day,
        tokens_per_day=amounts.tokens_per_day,
        when_unsure=_UNSURE_NUMBERS[limit.when_unsure],
        generation=limit.generation,
        by_operator=subject.set_by is Setter.OPERATOR,
    )


def _amounts_of(message: limits_pb2.Limit) -> Amounts:
    return Amounts(
        requests_per_s=message.requests_per_s or 0.0,  # -0.0 is not read back from every database
        burst=message.burst,
        tokens_per_min=message.tokens_per_min,
        concurrent_requests=message.concurrent_requests,
        requests_per_day=message.requests_per_day,
        tokens_per_day=message.tokens_per_day,
    )
