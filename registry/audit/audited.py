"""Around every servicer: who might not, and what was found altered, goes into the trail before the caller is told.

    registers = [audited(servicer.register, bounded) for servicer in servicers]

A servicer does nothing for it but enter by the door. Decides by the error alone: rights that were lacking, of calls that change
or hand out something, and rows that were altered, of all. What was answered NOT_FOUND because it is another tenant's
(`raise … from OtherTenant`) is written down for operators. Never changes what the caller is answered.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from registry.access.door import entered
from registry.access.types import MoreThanOwn, OtherTenant, ScopeRequired
from registry.audit.bounded import BoundedTrail
from registry.audit.policy import action_of, is_read, subject_of
from registry.seals import RowAltered
from runtime.errors import PenstockError
from runtime.serving import Register, RoleRequired

_REFUSALS = (ScopeRequired, OtherTenant, MoreThanOwn, RoleRequired)
_KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")


def audited(register: Register, trail: BoundedTrail) -> Register:
    """The same services, their refusals written down."""

    def register_audited(server: grpc.aio.Server) -> None:
        register(cast("grpc.aio.Server", _Audited(server, trail)))

    return register_audited


class _Audited:
    """A server, as far as generated code registers at one."""

    def __init__(self, server: grpc.aio.Server, trail: BoundedTrail) -> None:
        self._server, self._trail = server, trail

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Left out: the same methods are registered by name, below, and those are the ones that are called."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        wrapped = {method: _wrapped(handler, method, self._trail) for method, handler in handlers.items()}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, wrapped),))
        self._server.add_registered_method_handlers(service, wrapped)


def _wrapped(handler: Any, method: str, trail: BoundedTrail) -> grpc.RpcMethodHandler[Any, Any]:
    kind = next(kind for kind in _KINDS if getattr(handler, kind) is not None)
    behaviour = getattr(handler, kind)
    # A generator stays a generator and a writer stays a writer: grpc.aio tells them apart by inspecting the function.
    around = _generator if inspect.isasyncgenfunction(behaviour) else _coroutine
    make: Callable[..., grpc.RpcMethodHandler[Any, Any]] = getattr(grpc, f"{kind}_rpc_method_handler")
    return make(
        around(behaviour, method, trail),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def _coroutine(behaviour: Callable[..., Any], method: str, trail: BoundedTrail) -> Callable[..., Any]:
    async def call(request: Any, context: Any) -> Any:
        try:
            return await behaviour(request, context)
        except PenstockError as error:
            await _write_down(error, request, method, trail)
            raise

    return call


def _generator(behaviour: Callable[..., Any], method: str, trail: BoundedTrail) -> Callable[..., Any]:
    async def iterate(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async for response in behaviour(request, context):
                yield response
        except PenstockError as error:
            await _write_down(error, request, method, trail)
            raise

    return iterate


async def _write_down(error: PenstockError, request: Any, method: str, trail: BoundedTrail) -> None:
    principal, cause = entered.get(), error.__cause__
    if isinstance(error, RowAltered):
        await trail.altered(principal, error)
    elif principal is None or is_read(method):
        return
    elif isinstance(error, _REFUSALS):
        await trail.refused(principal, action_of(method), subject_of(_texts(request)), error)
    elif isinstance(cause, OtherTenant):
        await trail.hidden(principal, action_of(method), subject_of(_texts(request)), cause)


def _texts(request: Any) -> dict[str, str]:
    """Of a message its fields that are words; a stream of messages has none yet."""
    if not isinstance(request, Message):
        return {}
    return {field.name: value for field, value in request.ListFields() if isinstance(value, str)}
