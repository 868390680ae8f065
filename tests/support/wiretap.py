"""Everything that passes a server, for tests of what must not: its messages as they were, and the bytes on its connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from tests.support.forwarder import Forwarder


class MessageTap(grpc.aio.ServerInterceptor):
    """Keeps every request and answer of a server's unary methods, serialised."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []

    @property
    def everything(self) -> bytes:
        return b"\0".join(self.messages)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        answered: Any = handler.unary_unary

        async def call(request: Any, context: Any) -> Any:
            self._keep(request)
            answer = await answered(request, context)
            self._keep(answer)
            return answer

        return grpc.unary_unary_rpc_method_handler(
            call, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )

    def _keep(self, message: Any) -> None:
        self.messages.append(message if isinstance(message, bytes) else message.SerializeToString())


class Wiretap(Forwarder):
    """A forwarder that keeps what passes, in both directions."""

    def __init__(self, target_port: int) -> None:
        super().__init__(target_port)
        self.passed = bytearray()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await super()._pass_on(_Overheard(reader, self.passed), writer)  # type: ignore[arg-type]  # all that is read there


class _Overheard:
    def __init__(self, reader: asyncio.StreamReader, passed: bytearray) -> None:
        self._reader, self._passed = reader, passed

    async def read(self, size: int) -> bytes:
        data = await self._reader.read(size)
        self._passed += data
        return data


@asynccontextmanager
async def wiretap_to(port: int) -> AsyncIterator[Wiretap]:
    wiretap = Wiretap(port)
    await wiretap.mend()
    try:
        yield wiretap
    finally:
        await wiretap.close()
