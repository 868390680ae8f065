"""penstock.gateway.v1.ReservationService: a place on one worker, for an application that will talk to that worker alone.

Decides whether the caller may have the model, and which version of it is meant; a scheduler finds the place. The secret stays
with the application: what is seen here is its digest. What is then sent to the worker never comes by.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol, TypeVar

import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from penstock.gateway.v1 import gateway_pb2 as pb
from penstock.gateway.v1 import gateway_pb2_grpc
from penstock.scheduler.v1 import scheduler_pb2
from penstock.scheduler.v1.scheduler_pb2_grpc import FleetServiceStub

from gateway.callers import Caller, Callers, Context, name_request
from gateway.exchange import Exchanges
from gateway.regions import Regions
from gateway.targets import Targets
from runtime.errors import DeadlineExceeded, InvalidArgument
from runtime.ids import ModelVersion
from runtime.sealing import reservation_parts
from runtime.status import error_of

SERVICE = "penstock.gateway.v1.ReservationService"
TOKEN_SHA256_BYTES = 32
MAX_TTL_MS = 600_000
ANSWER_S = 10.0
"""What a scheduler may take: it asks up to three workers, and waits a moment where all are full."""

_Answer = TypeVar("_Answer")


class Schedulers(Protocol):
    """Whoever keeps places: gateway.schedulers.Schedulers."""

    async def ask(self, question: Callable[[grpc.aio.Channel], Awaitable[_Answer]]) -> _Answer:
        """At whichever answers. Raises what the last one answered."""
        ...


class ReservationServicer(gateway_pb2_grpc.ReservationServiceServicer):
    """Belongs to one event loop. `register` is a `runtime.serving.Register`."""

    def __init__(
        self,
        callers: Callers,
        exchanges: Exchanges,
        targets: Targets,
        schedulers: Schedulers,
        regions: Regions,
        authority_pem: bytes,
    ) -> None:
        self._callers, self._exchanges, self._targets = callers, exchanges, targets
        self._schedulers, self._regions = schedulers, regions
        self._authority = x509.load_pem_x509_certificate(authority_pem).public_bytes(Encoding.DER)
        self._loop = asyncio.get_running_loop()

    def register(self, server: grpc.aio.Server) -> None:
        gateway_pb2_grpc.add_ReservationServiceServicer_to_server(self, server)

    async def CreateReservation(self, request: pb.CreateReservationRequest, context: Context) -> pb.CreateReservationResponse:
        async def reserved(caller: Caller) -> pb.CreateReservationResponse:
            caller.key.authorise_call(request.model)
            _check(request)
            version = await self._targets.found(caller.key, request.model, request.version, deadline_s=caller.deadline_s)
            kept = await self._reserve(request, version, caller)
            return pb.CreateReservationResponse(
                reservation_id=kept.reservation_id,
                worker_id=kept.worker_id,
                version=kept.version,
                address=kept.address,
                presence=kept.presence,
                expires_at_ms=kept.expires_at_ms,
                authority=self._authority,
            )

        return await self._answered("CreateReservation", request.model, context, reserved)

    async def DeleteReservation(self, request: pb.DeleteReservationRequest, context: Context) -> pb.DeleteReservationResponse:
        async def deleted(caller: Caller) -> pb.DeleteReservationResponse:
            caller.key.require_infer()
            reservation_parts(request.reservation_id)
            asked = scheduler_pb2.ReleaseReservationRequest(reservation_id=request.reservation_id, tenant=caller.key.tenant)
            timeout_s = self._left_s(caller)
            await self._ask(lambda channel: FleetServiceStub(channel).ReleaseReservation(asked, timeout=timeout_s))
            return pb.DeleteReservationResponse()

        return await self._answered("DeleteReservation", "", context, deleted)

    async def _reserve(
        self, request: pb.CreateReservationRequest, version: ModelVersion, caller: Caller
    ) -> scheduler_pb2.ReserveResponse:
        asked = scheduler_pb2.ReserveRequest(
            model=request.model,
            version=version,
            region=self._regions.of(caller.headers, caller.address),
            tenant=caller.key.tenant,
            ttl_ms=request.ttl_ms,
            token_sha256=request.token_sha256,
        )
        timeout_s = self._left_s(caller)
        return await self._ask(lambda channel: FleetServiceStub(channel).Reserve(asked, timeout=timeout_s))

    async def _ask(self, question: Callable[[grpc.aio.Channel], Awaitable[_Answer]]) -> _Answer:
        async def asked(channel: grpc.aio.Channel) -> _Answer:
            try:
                return await question(channel)
            except grpc.aio.AioRpcError as failure:
                raise error_of(failure) from failure

        return await self._schedulers.ask(asked)

    def _left_s(self, caller: Caller) -> float:
        """Raises DeadlineExceeded where the caller has no time left."""
        if caller.deadline_s is None:
            return ANSWER_S
        left_s = caller.deadline_s - self._loop.time()
        if left_s <= 0:
            raise DeadlineExceeded("no time is left to ask for a place; give the call a longer deadline")
        return min(left_s, ANSWER_S)

    async def _answered(
        self, method: str, model: str, context: Context, answer: Callable[[Caller], Awaitable[_Answer]]
    ) -> _Answer:
        exchange, caller = self._exchanges.begin(method), None
        try:
            exchange.caller = caller = await self._callers.enter(context)
            await self._exchanges.admit(exchange, model)
            answered = await answer(caller)
        except BaseException as raised:
            self._exchanges.failed(exchange, raised)
            if caller is not None and isinstance(raised, Exception):
                with suppress(grpc.aio.BaseError):  # who has gone meanwhile needs no id to ask about it
                    await name_request(context, caller)
            raise
        await name_request(context, caller)
        self._exchanges.answered(exchange)
        return answered


def _check(request: pb.CreateReservationRequest) -> None:
    """Raises InvalidArgument."""
    if not request.model:
        raise InvalidArgument("the request names no model; a place is kept for one model")
    if len(request.token_sha256) != TOKEN_SHA256_BYTES:
        raise InvalidArgument(
            f"token_sha256 has {len(request.token_sha256)} bytes; draw {TOKEN_SHA256_BYTES} random bytes, keep them, and send"
            " their sha256"
        )
    if request.ttl_ms > MAX_TTL_MS:
        raise InvalidArgument(f"ttl_ms is {request.ttl_ms}; a place is kept for {MAX_TTL_MS} ms at most")
