"""penstock.scheduler.v1.LimitService on the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from penstock.scheduler.v1 import limits_pb2 as pb
from penstock.scheduler.v1 import limits_pb2_grpc

from runtime.errors import InvalidArgument
from runtime.identity import Role
from runtime.serving import inner_peer
from runtime.whole_batches import whole
from scheduler.limits.codec import asks_of, led_at, share_response
from scheduler.limits.room import LimitsRoom

SERVICE = "penstock.scheduler.v1.LimitService"
MAX_PROCESS_CHARACTERS = 64

Context = grpc.aio.ServicerContext[Any, Any]


class LimitsServicer(limits_pb2_grpc.LimitServiceServicer):
    """Gateways alone may call it. `register` is a `runtime.serving.Register`."""

    def __init__(self, room: LimitsRoom) -> None:
        self._room = room

    def register(self, server: grpc.aio.Server) -> None:
        limits_pb2_grpc.add_LimitServiceServicer_to_server(self, server)

    # A coroutine that writes: cancelled generators leak natively in grpc.aio (grpc#43360).
    async def Share(self, request_iterator: AsyncIterator[pb.ShareRequest], context: Context) -> None:  # type: ignore[override]
        node_id, room = inner_peer(context, Role.GATEWAY).node_id, self._room
        if room.book is None and (address := room.leader_address):
            await whole(context.write(led_at(address)))
            return
        if (message := await anext(request_iterator, None)) is None:
            return
        with room.sharing(node_id, _process(message)) as stream:
            while message is not None:
                grants = await room.answer(stream, asks_of(message))
                await whole(context.write(share_response(grants)))
                message = await anext(request_iterator, None)


def _process(message: pb.ShareRequest) -> str:
    """Raises InvalidArgument."""
    if not 0 < len(message.process) <= MAX_PROCESS_CHARACTERS:
        raise InvalidArgument(f"'process' is a word of 1 to {MAX_PROCESS_CHARACTERS} characters, not of {len(message.process)}")
    return message.process
