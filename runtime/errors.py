"""Every failure Penstock answers with. The class is the table: one class, one status code, one reason.

Owns the codes, the registry of reasons and the way an error is named on the wire. Never imports grpc: `runtime.status`
maps errors out of a server and back in at a client.

Source: google/rpc/code.proto for the codes, google/rpc/error_details.proto for ErrorInfo and RetryInfo.
"""

from __future__ import annotations

import enum
from typing import ClassVar

DOMAIN = "penstock"


class Code(enum.IntEnum):
    """gRPC status codes, by their wire numbers."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class PenstockError(Exception):
    """A failure with a code, a machine-readable reason and a sentence for the person who has to act on it."""

    code: ClassVar[Code] = Code.INTERNAL
    reason: ClassVar[str] = "INTERNAL"
    _by_reason: ClassVar[dict[str, type[PenstockError]]] = {}

    def __init_subclass__(cls, *, code: Code, reason: str) -> None:
        super().__init_subclass__()
        known = PenstockError._by_reason.get(reason)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise TypeError(f"reason {reason} is taken by {known.__qualname__}")
        cls.code, cls.reason = code, reason
        PenstockError._by_reason[reason] = cls

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_s = retry_after_s


class InvalidArgument(PenstockError, code=Code.INVALID_ARGUMENT, reason="INVALID_ARGUMENT"):
    """The request itself is wrong; the same request will fail again."""


class NotFound(PenstockError, code=Code.NOT_FOUND, reason="NOT_FOUND"):
    """What was asked for does not exist."""


class AlreadyExists(PenstockError, code=Code.ALREADY_EXISTS, reason="ALREADY_EXISTS"):
    """What was to be made exists."""


class Unauthenticated(PenstockError, code=Code.UNAUTHENTICATED, reason="UNAUTHENTICATED"):
    """The caller did not say who it is, or cannot prove it."""


class PermissionDenied(PenstockError, code=Code.PERMISSION_DENIED, reason="PERMISSION_DENIED"):
    """The caller is known and may not do this."""


class FailedPrecondition(PenstockError, code=Code.FAILED_PRECONDITION, reason="FAILED_PRECONDITION"):
    """An operator has to change something first."""


class ResourceExhausted(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="RESOURCE_EXHAUSTED"):
    """A limit was reached; back off, then retry."""


class Unavailable(PenstockError, code=Code.UNAVAILABLE, reason="UNAVAILABLE"):
    """Not now; the same call may be retried."""


class Aborted(PenstockError, code=Code.ABORTED, reason="ABORTED"):
    """Someone else changed it first; read again and retry higher up."""


class DeadlineExceeded(PenstockError, code=Code.DEADLINE_EXCEEDED, reason="DEADLINE_EXCEEDED"):
    """No time is left."""


class Cancelled(PenstockError, code=Code.CANCELLED, reason="CANCELLED"):
    """The caller went away."""


class Unimplemented(PenstockError, code=Code.UNIMPLEMENTED, reason="UNIMPLEMENTED"):
    """This server does not do that, for this model or at all."""


class DataLoss(PenstockError, code=Code.DATA_LOSS, reason="DATA_LOSS"):
    """Stored bytes are not what they were said to be."""


class Internal(PenstockError, code=Code.INTERNAL, reason="INTERNAL"):
    """A bug of ours."""


class VersionWithdrawn(PenstockError, code=Code.FAILED_PRECONDITION, reason="VERSION_WITHDRAWN"):
    """A model's version that nobody may serve or load any more. Every service answers so."""


class ContextExceeded(InvalidArgument, code=Code.INVALID_ARGUMENT, reason="CONTEXT_EXCEEDED"):
    """Prompt and answer together are more tokens than this model takes; a model with a longer context may take them."""


class CapabilityLacking(InvalidArgument, code=Code.INVALID_ARGUMENT, reason="CAPABILITY_LACKING"):
    """The request asks for something that this model does not do; another model may."""


class UpstreamBusy(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="UPSTREAM_RATE_LIMITED"):
    """Somebody else's API, for which a model stands, takes no more for now; every copy of the model asks the same one."""


class UpstreamUnavailable(PenstockError, code=Code.UNAVAILABLE, reason="UPSTREAM_UNAVAILABLE"):
    """Somebody else's API, for which a model stands, cannot be reached, fails, or broke off. The worker itself is well."""


# What a scheduler answers to gateways, which pass it on to callers by its reason.


class CapacityQueueFull(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="CAPACITY_QUEUE_FULL"):
    """As many requests wait for room as may: in all, for the model, or of the tenant."""


class CapacityTooLate(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="CAPACITY_TOO_LATE"):
    """The time that is left for the request would be over before its turn."""


class CapacityWaitedTooLong(PenstockError, code=Code.RESOURCE_EXHAUSTED, reason="CAPACITY_WAITED_TOO_LONG"):
    """The longest that a request may wait here is over."""


class ModelNotPlaced(PenstockError, code=Code.NOT_FOUND, reason="MODEL_NOT_PLACED"):
    """No copy of the model is in the region, and nobody wants one there."""


class ModelLoadFailed(PenstockError, code=Code.FAILED_PRECONDITION, reason="MODEL_LOAD_FAILED"):
    """Every worker that could answer failed to load the model."""


class NotLeader(PenstockError, code=Code.UNAVAILABLE, reason="NOT_LEADER"):
    """Another scheduler leads this region, or none does for the moment: find the leader by WatchFleet, and ask it."""


_BY_CODE: dict[Code, type[PenstockError]] = {
    kind.code: kind
    for kind in (
        Cancelled,
        InvalidArgument,
        DeadlineExceeded,
        NotFound,
        AlreadyExists,
        PermissionDenied,
        ResourceExhausted,
        FailedPrecondition,
        Aborted,
        Unimplemented,
        Internal,
        Unavailable,
        DataLoss,
        Unauthenticated,
    )
}


def error_from_wire(code: int, reason: str, message: str, retry_after_s: float | None = None) -> PenstockError:
    """The error another process answered with: by its reason where this process knows it, else by its code."""
    kind = PenstockError._by_reason.get(reason)
    if kind is None or kind.code != code:
        kind = _BY_CODE.get(_code(code), Internal)
    return kind(message, retry_after_s=retry_after_s)


def _code(number: int) -> Code:
    try:
        return Code(number)
    except ValueError:
        return Code.INTERNAL
