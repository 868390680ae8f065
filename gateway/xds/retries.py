"""When a request goes to another member: never to one that it was at, after a short pause, a bounded number of times."""

from __future__ import annotations

from xds import previous_hosts_pb2, route_pb2

from gateway.xds.packing import packed, seconds

UNTOUCHED = "connect-failure,refused-stream"
"""Only what certainly reached no handler."""

ANYWAY = f"{UNTOUCHED},reset,unavailable,cancelled"
"""Also what may have been done: for methods that may be done twice. A server that is ended at once answers CANCELLED."""

_PREVIOUS_HOSTS = "envoy.retry_host_predicates.previous_hosts"
_SELECTIONS = 64
"""Draws until a member is one that was not tried: a dead one has the least requests, and so is drawn most of the time."""

_PAUSE_S, _MAX_PAUSE_S = 0.01, 0.1


def elsewhere(retry_on: str, retries: int, *, per_try_s: float = 0.0) -> route_pb2.RetryPolicy:
    """`per_try_s`: an attempt without an answer for so long is given up; 0 = none is."""
    untried = route_pb2.RetryPolicy.RetryHostPredicate(
        name=_PREVIOUS_HOSTS, typed_config=packed(previous_hosts_pb2.PreviousHostsPredicate())
    )
    pause = route_pb2.RetryPolicy.RetryBackOff(base_interval=seconds(_PAUSE_S), max_interval=seconds(_MAX_PAUSE_S))
    policy = route_pb2.RetryPolicy(
        retry_on=retry_on, retry_host_predicate=[untried], host_selection_retry_max_attempts=_SELECTIONS, retry_back_off=pause
    )
    policy.num_retries.value = retries
    if per_try_s:
        policy.per_try_timeout.CopyFrom(seconds(per_try_s))
    return policy
