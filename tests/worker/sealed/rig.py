"""A sealed port on loopback over an engine that tells what it saw, and clients of it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from inference import grpc_service_pb2
from penstock.worker.v1 import sealed_pb2, worker_pb2
from penstock.worker.v1.sealed_pb2_grpc import SealedServiceStub

from runtime.errors import PenstockError, ResourceExhausted
from runtime.identity import Authority, NodeIdentity, Role, server_name
from runtime.ids import ModelVersion, Region, WorkerId
from runtime.sealed_client import ReservedWorker
from runtime.sealing import SealedCall, SealedPlace, reservation_id, seal_call, token_sha256_of
from runtime.serving import Listen, ServerLimits, serving
from worker.holds import Hold, HoldId, Holds
from worker.quota import QuotaGuard, QuotaPolicy
from worker.sealed.door import Door
from worker.sealed.servicer import SERVICE, SealedServicer
from worker.sealed.types import SealedLimits
from worker.types import CallContext, Load

MODEL, VERSION, TENANT = "digits", "3", "acme"
TOKEN = b"t" * 32


@dataclass(slots=True)
class Engine:
    """An Inference that tells what it was asked."""

    seen: list[tuple[str, str, bytes, CallContext]] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    waits: bool = False
    fails: Exception | None = None
    pieces: int = 3
    padding: bytes = b""
    """At the end of each piece."""

    async def infer(self, model: str, version: str, payload: bytes, call: CallContext) -> bytes:
        self.seen.append((model, version, payload, call))
        self.entered.set()
        await self._pass()
        return grpc_service_pb2.ModelInferResponse(model_name=model, id=call.request_id).SerializeToString()

    async def stream_infer(self, model: str, version: str, payload: bytes, call: CallContext) -> AsyncGenerator[bytes, None]:
        self.seen.append((model, version, payload, call))
        for number in range(self.pieces):
            yield str(number).encode() + self.padding
        self.entered.set()
        await self._pass()

    def generate(self, model: str, version: str, payload: bytes, call: CallContext) -> AsyncIterator[bytes]:
        return self.stream_infer(model, version, payload, call)

    async def _pass(self) -> None:
        try:
            if self.fails is not None:
                raise self.fails
            if self.waits:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    @property
    def load(self) -> Load:
        return Load(0, 0)


@dataclass(slots=True)
class Intake:
    """Whether calls are taken, and how many are open."""

    refuses: PenstockError | None = None
    open_calls: int = 0

    def refusal(self) -> PenstockError | None:
        return self.refuses

    def began(self, hold_id: str = "") -> None:
        self.open_calls += 1

    def ended(self, hold_id: str = "") -> None:
        self.open_calls -= 1


@dataclass(slots=True)
class SealedPort:
    identity: NodeIdentity
    guard: QuotaGuard
    holds: Holds
    engine: Engine
    intake: Intake
    door: Door
    port: int
    stub: Any
    channel: grpc.aio.Channel

    @property
    def worker_id(self) -> WorkerId:
        return WorkerId(self.identity.node_id)

    async def reserve(self, *, ttl_s: float = 60.0, token: bytes = TOKEN) -> str:
        """A reservation of the model, by name."""
        hold_id = HoldId(secrets.token_hex(16))
        hold = Hold(hold_id, MODEL, VERSION, TENANT, ttl_s, token_sha256_of(token))
        await self.holds.hold(hold, wait_s=0)
        return reservation_id(self.worker_id, hold_id)

    def place(self) -> SealedPlace:
        return SealedPlace(self.worker_id, Region("here"), f"127.0.0.1:{self.port}", self.identity.x25519_public_key)

    def client(self, reservation: str, token: bytes = TOKEN) -> ReservedWorker:
        """Whoever holds this reservation and this secret."""
        return ReservedWorker(reservation, ModelVersion(VERSION), 0.0, self.place(), token, self.channel)

    def box(self, reservation: str, **changes: Any) -> bytes:
        """A box with a call of this reservation, but for these."""
        told: dict[str, Any] = {
            "reservation_id": reservation,
            "worker_id": self.worker_id,
            "method": worker_pb2.METHOD_INFER,
            "payload": infer_request().SerializeToString(),
            "token": TOKEN,
            "reply_key": secrets.token_bytes(32),
        }
        return seal_call(SealedCall(**{**told, **changes}), self.identity.x25519_public_key)

    async def send(self, reservation: str, box: bytes) -> list[sealed_pb2.CallSealedResponse]:
        """Everything that comes back. Raises AioRpcError."""
        call = self.stub.CallSealed(sealed_pb2.CallSealedRequest(reservation_id=reservation, box=box), timeout=20)
        return [part async for part in call]


def infer_request(model: str = MODEL, version: str = "", content: bytes = b"") -> grpc_service_pb2.ModelInferRequest:
    request = grpc_service_pb2.ModelInferRequest(model_name=model, model_version=version, raw_input_contents=[content])
    request.inputs.add(name="x", datatype="UINT8", shape=[len(content)])
    return request


FULL = ResourceExhausted("the queue of digits holds 4", retry_after_s=0.25)


@asynccontextmanager
async def sealed_port(
    folder: Path, *, max_in_flight: int = 4, limits: SealedLimits | None = None, server: ServerLimits | None = None
) -> AsyncIterator[SealedPort]:
    identity = Authority.open(folder / "ca").enrol(folder / "worker", Role.WORKER)
    guard = QuotaGuard(QuotaPolicy(max_in_flight))
    holds, intake = Holds(guard), Intake()
    engine = Engine()
    private_key = identity.signing_key.to_curve25519_private_key()
    door = Door(engine, holds, WorkerId(identity.node_id), private_key, intake, limits)
    listen = Listen("127.0.0.1", 0, identity, asks_certificate=False)
    opening = serving([listen], [SealedServicer(door).register], [SERVICE], limits=server, drain_grace_s=0.1)
    options = [("grpc.ssl_target_name_override", server_name(Role.WORKER, identity.node_id))]
    async with opening as running:
        address, root = f"127.0.0.1:{running.ports[0]}", grpc.ssl_channel_credentials(identity.authority_pem)
        async with grpc.aio.secure_channel(address, root, options=options) as channel:
            stub = SealedServiceStub(channel)
            yield SealedPort(identity, guard, holds, engine, intake, door, running.ports[0], stub, channel)
