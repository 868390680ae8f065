"""A client for whom the gateway and all that lies behind it are a way, and one worker is who it talks to.

Reserves a place at a gateway, believes the worker's key for the signature of the mesh's authority and nothing else, and sends
each call in a box that this worker alone opens. The gateway sees who reserves which model, and never what is asked or answered.
Owns the reservation's secret and the channel to the worker.

    async with SealedClient(gateway_channel, api_key, authority_pem).reserved("digits") as worker:
        response = await worker.infer(request)
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from google.protobuf.message import DecodeError
from inference import grpc_service_pb2
from penstock.gateway.v1 import gateway_pb2
from penstock.gateway.v1.gateway_pb2_grpc import ReservationServiceStub
from penstock.worker.v1 import sealed_pb2, worker_pb2
from penstock.worker.v1.sealed_pb2_grpc import SealedServiceStub

from runtime.certificates import UNREADABLE, Role, server_name
from runtime.channel import channel_options
from runtime.clock import Clock, SystemClock
from runtime.errors import Code, FailedPrecondition, PenstockError, error_from_wire
from runtime.ids import ModelVersion, NodeId
from runtime.sealing import (
    KEY_BYTES,
    TOKEN_BYTES,
    AnswerAltered,
    AnswerOpener,
    SealedCall,
    SealedPlace,
    seal_call,
    token_sha256_of,
    verified_place,
)
from runtime.status import error_of

MESSAGE_BYTES = 64 * 1024 * 1024
RESERVE_S = 15.0
CALL_S = 60.0
_GIVE_BACK_S = 5.0


class AnotherAuthority(PenstockError, code=Code.PERMISSION_DENIED, reason="ANOTHER_AUTHORITY"):
    """The gateway is of a mesh whose authority is not the one that this client believes."""


class ReservedWorker:
    """The one worker, for as long as the place there is kept. One call at a time: it is one place."""

    def __init__(
        self,
        reservation_id: str,
        version: ModelVersion,
        expires_wall_s: float,
        place: SealedPlace,
        token: bytes,
        channel: grpc.aio.Channel,
    ) -> None:
        self.reservation_id, self.version, self.expires_wall_s, self.place = reservation_id, version, expires_wall_s, place
        self._token = token
        self._stub: Any = SealedServiceStub(channel)

    async def infer(
        self, request: grpc_service_pb2.ModelInferRequest, *, timeout_s: float = CALL_S
    ) -> grpc_service_pb2.ModelInferResponse:
        """One answer. Raises what the worker answered, and AnswerAltered."""
        async with aclosing(self.call(worker_pb2.METHOD_INFER, request.SerializeToString(), timeout_s=timeout_s)) as answers:
            found = [answer async for answer in answers]
        if len(found) != 1:
            raise AnswerAltered(f"{len(found)} answers came to one request; ask again")
        return grpc_service_pb2.ModelInferResponse.FromString(found[0])

    async def stream_infer(
        self, request: grpc_service_pb2.ModelInferRequest, *, timeout_s: float = CALL_S
    ) -> AsyncGenerator[grpc_service_pb2.ModelStreamInferResponse, None]:
        """The answers, one by one; close it when leaving early."""
        calling = self.call(worker_pb2.METHOD_STREAM_INFER, request.SerializeToString(), timeout_s=timeout_s)
        async with aclosing(calling) as answers:
            async for answer in answers:
                yield grpc_service_pb2.ModelStreamInferResponse.FromString(answer)

    async def generate(
        self, request: worker_pb2.GenerateRequest, *, timeout_s: float = CALL_S
    ) -> AsyncGenerator[worker_pb2.GenerateResponse, None]:
        """Text as it is made; close it when leaving early."""
        calling = self.call(worker_pb2.METHOD_GENERATE, request.SerializeToString(), timeout_s=timeout_s)
        async with aclosing(calling) as answers:
            async for answer in answers:
                yield worker_pb2.GenerateResponse.FromString(answer)

    async def call(
        self, method: worker_pb2.Method.ValueType, payload: bytes, *, timeout_s: float = CALL_S
    ) -> AsyncGenerator[bytes, None]:
        """The answers to a serialised request. Each call has a key of its own, so none can be sent twice by others."""
        reply_key = secrets.token_bytes(KEY_BYTES)
        call = self._stub.CallSealed(self._sealed(method, payload, reply_key, timeout_s), timeout=timeout_s)
        opener: AnswerOpener | None = None
        try:
            async for part in call:
                if opener is None:
                    opener = AnswerOpener(reply_key, part.header)
                answer = _answer_of(opener.open(part.message))
                if answer is not None:
                    yield answer
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure) from failure
        finally:
            call.cancel()
        if opener is None:
            raise AnswerAltered("the answer was cut off before it began; ask again")
        opener.end()

    def _sealed(
        self, method: worker_pb2.Method.ValueType, payload: bytes, reply_key: bytes, timeout_s: float
    ) -> sealed_pb2.CallSealedRequest:
        call = SealedCall(
            self.reservation_id, self.place.worker_id, method, payload, self._token, reply_key, timeout_s=timeout_s
        )
        box = seal_call(call, self.place.x25519_public_key)
        return sealed_pb2.CallSealedRequest(reservation_id=self.reservation_id, box=box)


class SealedClient:
    """Reserves at one gateway. The channel to it belongs to whoever opened it."""

    def __init__(self, gateway: grpc.aio.Channel, api_key: str, authority_pem: bytes, *, clock: Clock | None = None) -> None:
        """`authority_pem`: the certificate that vouches for the mesh's workers, from anywhere but the gateway.

        Raises FailedPrecondition on what is no certificate.
        """
        self._stub: Any = ReservationServiceStub(gateway)
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()
        self._authority_pem, self._authority_der = authority_pem, _der(authority_pem)
        self._clock = clock or SystemClock()

    @asynccontextmanager
    async def reserved(self, model: str, version: str = "", *, ttl_s: float = 60.0) -> AsyncIterator[ReservedWorker]:
        """A place for calls to this model, given back at the end.

        Raises what the gateway answers; AnotherAuthority and RecordRefused where the worker is not to be believed.
        """
        token = secrets.token_bytes(TOKEN_BYTES)
        request = gateway_pb2.CreateReservationRequest(
            model=model, version=version, ttl_ms=int(ttl_s * 1000), token_sha256=token_sha256_of(token)
        )
        kept = await self._answer(self._stub.CreateReservation(request, metadata=self._metadata, timeout=RESERVE_S))
        try:
            place = self._believed(kept)
            async with worker_channel(place, self._authority_pem) as channel:
                version_kept = ModelVersion(kept.version)
                yield ReservedWorker(kept.reservation_id, version_kept, kept.expires_at_ms / 1000, place, token, channel)
        finally:
            await self._give_back(kept.reservation_id)

    def _believed(self, kept: gateway_pb2.CreateReservationResponse) -> SealedPlace:
        if kept.authority != self._authority_der:
            raise AnotherAuthority("the gateway belongs to another mesh than the authority's certificate; check both")
        record, now_wall_s = kept.presence.SerializeToString(), self._clock.wall_s()
        return verified_place(record, self._authority_pem, worker_id=kept.worker_id, now_wall_s=now_wall_s)

    async def _give_back(self, reservation_id: str) -> None:
        """Where it cannot be given back, its time ends it."""
        request = gateway_pb2.DeleteReservationRequest(reservation_id=reservation_id)
        with suppress(PenstockError):
            await self._answer(self._stub.DeleteReservation(request, metadata=self._metadata, timeout=_GIVE_BACK_S))

    async def _answer(self, call: Any) -> Any:
        try:
            return await call
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure) from failure


def _answer_of(message: bytes) -> bytes | None:
    """None: nothing but the end. Raises what the worker says went wrong."""
    try:
        answer = sealed_pb2.SealedAnswer.FromString(message)
    except DecodeError as error:
        raise AnswerAltered("what the worker sealed is no answer; ask again") from error
    if answer.HasField("failure"):
        failure = answer.failure
        retry_after_s = failure.retry_after_ms / 1000 if failure.retry_after_ms else None
        raise error_from_wire(failure.code, failure.reason, failure.message, retry_after_s)
    return answer.data if answer.HasField("data") else None


def worker_channel(place: SealedPlace, authority_pem: bytes) -> grpc.aio.Channel:
    """Only a node with this worker's certificate can answer on it."""
    name = server_name(Role.WORKER, NodeId(place.worker_id))
    options = [("grpc.ssl_target_name_override", name), *channel_options(MESSAGE_BYTES)]
    return grpc.aio.secure_channel(place.address, grpc.ssl_channel_credentials(authority_pem), options=options)


def _der(certificate_pem: bytes) -> bytes:
    """Raises FailedPrecondition on what is no certificate."""
    try:
        return x509.load_pem_x509_certificate(certificate_pem).public_bytes(Encoding.DER)
    except UNREADABLE as error:
        raise FailedPrecondition("the authority's certificate is no PEM certificate; it is ca.pem of the mesh") from error
