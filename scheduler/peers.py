"""The registry as the scheduler calls it: the word that a pending alias move is to be done, or given up.

Sees generated messages; errors come out as our own classes. Never tries again: who asks does.
"""

from __future__ import annotations

import grpc.aio
from penstock.registry.v1 import models_pb2, models_pb2_grpc

from runtime.ids import ModelName
from runtime.status import error_of


class RegistryPeer:
    """Implements `scheduler.switches.Registry`."""

    def __init__(self, channel: grpc.aio.Channel, *, answer_s: float = 5.0) -> None:
        self._stub, self._answer_s = models_pb2_grpc.ModelServiceStub(channel), answer_s

    async def settle_alias(self, model: ModelName, alias: str, generation: int, abandoned_because: str = "") -> None:
        """Raises Aborted where the alias was changed since, and what else the registry answers."""
        request = models_pb2.SettleAliasRequest(
            model=model, alias=alias, generation=generation, abandoned_because=abandoned_because
        )
        try:
            await self._stub.SettleAlias(request, timeout=self._answer_s)
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure) from failure
