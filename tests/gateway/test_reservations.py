"""A gateway's ReservationService over real gRPC: who may reserve what, what a scheduler is asked, what applications learn."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc.aio
import pytest
from cryptography import x509
from penstock.gateway.v1 import gateway_pb2 as pb
from penstock.gateway.v1 import gateway_pb2_grpc
from penstock.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from penstock.worker.v1 import presence_pb2
from prometheus_client import CollectorRegistry

from gateway.admission import KeyFacts
from gateway.callers import Callers
from gateway.exchange import Exchanges
from gateway.keys import Keys
from gateway.limits.limiter import Limiter
from gateway.limits.purse import Purse
from gateway.limits.types import Limit
from gateway.metrics import GatewayMetrics
from gateway.regions import Regions
from gateway.reservations import ANSWER_S, SERVICE, ReservationServicer
from gateway.targets import Targets
from placement.types import Copy, Worker
from runtime.clock import SystemClock
from runtime.errors import Code, PenstockError, ResourceExhausted
from runtime.identity import Authority
from runtime.ids import KeyId, TenantId
from runtime.notices import NoticeBoard
from runtime.serving import Listen, serving
from runtime.status import error_of
from tests.gateway.fakes import LOCAL, FakeDirectory, copy_of, notice_of, worker_of

DIGEST = hashlib.sha256(b"a secret").digest()
NAME = "a" * 20 + "." + "0" * 32
_Answer = TypeVar("_Answer")


def keys_of() -> dict[bytes, KeyFacts]:
    tenant = TenantId("t")
    facts = {
        "caller": KeyFacts(KeyId("caller"), tenant),
        "only-n": KeyFacts(KeyId("only-n"), tenant, allowed_models=frozenset({"n"})),
        "auditor": KeyFacts(KeyId("auditor"), tenant, may_infer=False),
        "stranger": KeyFacts(KeyId("stranger"), TenantId("u")),
        "slow": KeyFacts(KeyId("slow"), tenant, limits=(Limit("slow", key_id="slow", requests_per_s=0.01, burst=1),)),
    }
    return {hashlib.sha256(f"sk-{name}".encode()).digest(): each for name, each in facts.items()}


class Scheduler(scheduler_pb2_grpc.FleetServiceServicer):
    """Keeps a place at a worker, and what it was asked."""

    def __init__(self) -> None:
        self.asked: list[scheduler_pb2.ReserveRequest] = []
        self.released: list[scheduler_pb2.ReleaseReservationRequest] = []
        self.left_s: list[float] = []
        self.fails: PenstockError | None = None

    async def Reserve(self, request: scheduler_pb2.ReserveRequest, context: Any) -> scheduler_pb2.ReserveResponse:
        self.asked.append(request)
        self.left_s.append(context.time_remaining())
        if self.fails is not None:
            raise self.fails
        return scheduler_pb2.ReserveResponse(
            reservation_id=NAME,
            worker_id="a" * 20,
            model=request.model,
            version="3",
            address="10.0.0.7:7",
            presence=presence_pb2.SignedRecord(payload=b"payload", signature=b"s", ed25519_public_key=b"k", certificate=b"c"),
            expires_at_ms=1234,
        )

    async def ReleaseReservation(
        self, request: scheduler_pb2.ReleaseReservationRequest, context: Any
    ) -> scheduler_pb2.ReleaseReservationResponse:
        self.released.append(request)
        return scheduler_pb2.ReleaseReservationResponse()


Scheduler.__abstractmethods__ = frozenset()  # the others are not asked here


@dataclass
class OneScheduler:
    """As gateway.schedulers.Schedulers, where one answers."""

    channel: grpc.aio.Channel

    async def ask(self, question: Callable[[grpc.aio.Channel], Awaitable[_Answer]]) -> _Answer:
        return await question(self.channel)


@dataclass
class HeldFleet:
    synced: bool = True
    held: frozenset[str] = frozenset({"m", "n"})

    def copies(self, model: str, version: str = "") -> tuple[tuple[Worker, Copy], ...]:
        copy = copy_of(model)
        return ((worker_of("w", copy), copy),) if model in self.held else ()

    def placed(self, model: str, version: str = "") -> bool:
        return False


@dataclass
class GatewayUnderTest:
    stub: Any
    scheduler: Scheduler
    authority: x509.Certificate
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    async def create(self, key: str = "caller", *, timeout_s: float = 20.0, **changes: Any) -> Any:
        told = {"model": "m", "token_sha256": DIGEST, **changes}
        return await self.call("CreateReservation", pb.CreateReservationRequest(**told), key, timeout_s)

    async def delete(self, reservation_id: str, key: str = "caller") -> Any:
        return await self.call("DeleteReservation", pb.DeleteReservationRequest(reservation_id=reservation_id), key)

    async def call(self, method: str, request: Any, key: str, timeout_s: float = 20.0) -> Any:
        metadata = (("authorization", f"Bearer sk-{key}"),) if key else ()
        return await getattr(self.stub, method)(request, metadata=metadata, timeout=timeout_s)

    async def refusal(self, calling: Awaitable[Any]) -> PenstockError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await calling
        return error_of(caught.value)

    def counted(self, method: str, model: str, code: str) -> float | None:
        labels = {"method": method, "model": model, "code": code}
        return self.registry.get_sample_value("penstock_gateway_requests_total", labels)


@asynccontextmanager
async def gateway_under_test(folder: Path) -> AsyncIterator[GatewayUnderTest]:
    authority, registry = Authority.open(folder / "ca"), CollectorRegistry()
    scheduler = Scheduler()  # type: ignore[abstract]
    board = NoticeBoard()
    board.synced = True
    board.hear_model(notice_of("m", aliases={"stable": ("3", 0), "canary": ("4", 0)}))
    board.hear_model(notice_of("n"))
    async with AsyncExitStack() as stack:

        async def served(register: Any, service: str) -> grpc.aio.Channel:
            opening = serving([Listen("127.0.0.1", 0)], [register], [service], drain_grace_s=0.1)
            running = await stack.enter_async_context(opening)
            return await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{running.ports[0]}"))

        def on_scheduler(server: grpc.aio.Server) -> None:
            scheduler_pb2_grpc.add_FleetServiceServicer_to_server(scheduler, server)

        inner = await served(on_scheduler, "penstock.scheduler.v1.FleetService")
        metrics = GatewayMetrics(registry)
        limiter = Limiter(Purse(), SystemClock(), metrics)
        limiter.unsure()  # nobody is asked here: this gateway has all of it
        keys = Keys(FakeDirectory(keys_of()), SystemClock())
        stack.push_async_callback(keys.close)
        servicer = ReservationServicer(
            Callers(keys, metrics),
            Exchanges(metrics, limiter),
            Targets(board, HeldFleet(), enforced=True, wait_s=0.1),
            OneScheduler(inner),
            Regions(LOCAL, lambda: (), header_allowed=False),
            authority.certificate_pem,
        )
        outer = await served(servicer.register, SERVICE)
        stub = gateway_pb2_grpc.ReservationServiceStub(outer)
        yield GatewayUnderTest(stub, scheduler, authority.certificate, registry)


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[GatewayUnderTest]:
    async with gateway_under_test(tmp_path) as under_test:
        yield under_test


async def test_an_application_learns_where_and_to_whom_to_speak(gateway: GatewayUnderTest) -> None:
    kept = await gateway.create(ttl_ms=5_000)
    assert [kept.reservation_id, kept.worker_id, kept.version, kept.address] == [NAME, "a" * 20, "3", "10.0.0.7:7"]
    assert (kept.presence.payload, kept.expires_at_ms) == (b"payload", 1234)
    assert x509.load_der_x509_certificate(kept.authority) == gateway.authority
    (asked,) = gateway.scheduler.asked
    assert [asked.model, asked.version, asked.region, asked.tenant, asked.ttl_ms] == ["m", "3", LOCAL, "t", 5_000]
    assert asked.token_sha256 == DIGEST
    assert gateway.counted("CreateReservation", "m", "OK") == 1


async def test_names_of_versions_are_resolved_here(gateway: GatewayUnderTest) -> None:
    for named, meant in (("", "3"), ("stable", "3"), ("canary", "4"), ("7", "7")):
        await gateway.create(version=named)
        assert gateway.scheduler.asked[-1].version == meant


@pytest.mark.parametrize(
    ("key", "changes", "code", "reason"),
    [
        ("", {}, Code.UNAUTHENTICATED, "KEY_MISSING"),
        ("nobody", {}, Code.UNAUTHENTICATED, "KEY_REFUSED"),
        ("only-n", {}, Code.PERMISSION_DENIED, "MODEL_NOT_ALLOWED"),
        ("auditor", {}, Code.PERMISSION_DENIED, "INFER_SCOPE_REQUIRED"),
        ("stranger", {}, Code.NOT_FOUND, "MODEL_UNSERVED"),
        ("caller", {"model": "x"}, Code.NOT_FOUND, "MODEL_UNSERVED"),
        ("caller", {"model": ""}, Code.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
        ("caller", {"token_sha256": b"short"}, Code.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
        ("caller", {"ttl_ms": 600_001}, Code.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
    ],
)
async def test_who_may_not_is_told_so_and_no_scheduler_is_asked(
    gateway: GatewayUnderTest, key: str, changes: dict[str, Any], code: Code, reason: str
) -> None:
    error = await gateway.refusal(gateway.create(key, **changes))
    assert (error.code, error.reason) == (code, reason)
    assert not gateway.scheduler.asked


async def test_a_reservation_costs_the_key_a_request(gateway: GatewayUnderTest) -> None:
    await gateway.create("slow")
    assert (await gateway.refusal(gateway.create("slow"))).reason == "RATE_LIMITED"


async def test_what_the_scheduler_answers_reaches_the_application(gateway: GatewayUnderTest) -> None:
    gateway.scheduler.fails = ResourceExhausted("every worker is full", retry_after_s=2.0)
    error = await gateway.refusal(gateway.create())
    assert (error.code, error.message, error.retry_after_s) == (Code.RESOURCE_EXHAUSTED, "every worker is full", 2.0)
    assert gateway.counted("CreateReservation", "other", "RESOURCE_EXHAUSTED") == 1


async def test_the_scheduler_has_the_callers_time_and_never_more_than_a_bound(gateway: GatewayUnderTest) -> None:
    await gateway.create(timeout_s=3.0)
    await gateway.create(timeout_s=300.0)
    short_s, long_s = gateway.scheduler.left_s
    assert short_s < 4.0 < long_s < ANSWER_S + 1.0


async def test_a_place_is_given_back_by_its_name(gateway: GatewayUnderTest) -> None:
    await gateway.delete(NAME)
    (released,) = gateway.scheduler.released
    assert [released.reservation_id, released.tenant] == [NAME, "t"]
    assert (await gateway.refusal(gateway.delete("nothing"))).code is Code.INVALID_ARGUMENT
    assert (await gateway.refusal(gateway.delete(NAME, ""))).reason == "KEY_MISSING"
    assert len(gateway.scheduler.released) == 1
