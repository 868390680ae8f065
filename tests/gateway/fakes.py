"""What a gateway depends on, in memory: a fleet that is told by hand, schedulers, keys, publications, links
without a network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from gateway.admission import KeyFacts
from gateway.links.types import CallContext, LinkLoad, Method
from gateway.types import CapacityAsk, DemandReport, FleetNews, Held, PublishedVersion
from placement.copies.assign import Placement
from placement.types import Copy, CopyState, Worker
from runtime.errors import NotFound, PenstockError, Unavailable
from runtime.ids import Digest, ModelName, ModelVersion, Region, TenantId, WorkerId
from runtime.notices import AliasTarget, ModelNotice

LOCAL = Region("local")
DIGEST = Digest("d" * 64)


def copy_of(model: str, version: str = "1", state: CopyState = CopyState.READY, reason: str = "", task: str = "tensor") -> Copy:
    return Copy(ModelName(model), ModelVersion(version), DIGEST, state, reason, task)


def worker_of(
    worker_id: str, *copies: Copy, address: str = "127.0.0.1:1", max_in_flight: int = 8, region: str = LOCAL
) -> Worker:
    return Worker(WorkerId(worker_id), Region(region), address, frozenset(), copies, max_in_flight)


def wish_of(model: str, copies: int = 1, version: str = "1", region: str = LOCAL, max_copies: int = 0) -> Placement:
    return Placement(ModelName(model), ModelVersion(version), DIGEST, Region(region), copies, 1, max_copies)


@dataclass
class FakeSource:
    """A scheduler: what is put in is told; `lose` breaks the watch."""

    news: asyncio.Queue[FleetNews | PenstockError] = field(default_factory=asyncio.Queue)
    watches: int = 0

    async def watch(self) -> AsyncGenerator[FleetNews, None]:
        self.watches += 1
        while True:
            told = await self.news.get()
            if isinstance(told, PenstockError):
                raise told
            yield told

    def tell(self, *workers: Worker, wishes: Sequence[Placement] | None = ()) -> None:
        self.news.put_nowait(FleetNews(True, workers, placements=None if wishes is None else tuple(wishes)))

    def lose(self) -> None:
        self.news.put_nowait(Unavailable("the scheduler is away"))


@dataclass
class FakeScheduler:
    """One of several: says what is put in, answers asks by `answer`, and takes reports unless it is away."""

    address: str
    news: asyncio.Queue[FleetNews | PenstockError] = field(default_factory=asyncio.Queue)
    watched: list[str] = field(default_factory=list)
    is_reachable: bool = True
    answer: Callable[[CapacityAsk], Held] | PenstockError = field(default_factory=lambda: Unavailable("leads nothing"))
    gate: asyncio.Event | None = None
    """Asks wait for it."""
    asks: list[CapacityAsk] = field(default_factory=list)
    withdrawn: int = 0
    placed: list[Placement] = field(default_factory=list)
    refuses: PenstockError | None = None
    reports: list[DemandReport] = field(default_factory=list)
    away: bool = False
    tried: int = 0
    channel: Any = field(default_factory=lambda: FakeChannel())

    async def watch(self, region: Region) -> AsyncGenerator[FleetNews, None]:
        self.watched.append(region)
        while True:
            told = await self.news.get()
            if isinstance(told, PenstockError):
                raise told
            yield told

    async def place(self, placement: Placement) -> Placement:
        if self.refuses is not None:
            raise self.refuses
        self.placed.append(placement)
        return placement

    async def reachable(self, timeout_s: float) -> bool:
        self.tried += 1
        return self.is_reachable

    async def await_capacity(self, ask: CapacityAsk) -> Held:
        self.asks.append(ask)
        try:
            if self.gate is not None:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.withdrawn += 1
            raise
        if isinstance(self.answer, PenstockError):
            raise self.answer
        return self.answer(ask)

    @asynccontextmanager
    async def reporting(self) -> AsyncIterator[Callable[[DemandReport], Awaitable[None]]]:
        async def write(report: DemandReport) -> None:
            if self.away:
                raise Unavailable("the scheduler is away")
            self.reports.append(report)

        yield write


@dataclass
class FakeChannel:
    closed: bool = False

    async def close(self) -> None:
        self.closed = True


@dataclass
class FakeLink:
    """A worker behind no network. `script` is played call by call, the last one for ever; without one it echoes."""

    address: str
    script: list[Callable[[bytes], bytes] | PenstockError] = field(default_factory=list)
    calls: int = 0
    in_flight: int = 0
    load: LinkLoad = field(default_factory=LinkLoad)
    last_failure: str = ""
    rtt_ms: float = 0.0
    gate: asyncio.Event | None = None
    """Calls wait for it."""
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False
    is_silent: bool = False
    seen: list[CallContext] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    fails_after: int | None = None
    """A stream fails after so many answers."""

    def start(self) -> None:
        self.connected.set()

    async def close(self) -> None:
        self.closed = True

    async def wait_connected(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self.connected.wait()
        except TimeoutError:
            return False
        return True

    @property
    def ready(self) -> bool:
        return self.connected.is_set() and not self.load.draining

    async def call(self, model: str, version: str, payload: bytes, context: CallContext) -> bytes:
        self.calls += 1
        self.seen.append(context)
        self.versions.append(version)
        self.in_flight += 1
        try:
            if self.gate is not None:
                await self.gate.wait()
            act = self.script[min(self.calls, len(self.script)) - 1] if self.script else None
            if isinstance(act, PenstockError):
                raise act
            return act(payload) if act is not None else payload
        finally:
            self.in_flight -= 1

    def stream(self, method: Method, model: str, version: str, payload: bytes, context: CallContext) -> FakeAnswers:
        return FakeAnswers(self._answers(model, version, payload, context))

    async def _answers(self, model: str, version: str, payload: bytes, context: CallContext) -> AsyncGenerator[bytes, None]:
        first = await self.call(model, version, payload, context)
        for number in range(3):
            if number == self.fails_after:
                raise Unavailable("lost in the middle")
            yield first + str(number).encode()


class FakeAnswers(AsyncIterator[bytes]):
    def __init__(self, answers: AsyncGenerator[bytes, None]) -> None:
        self._answers = answers

    async def __anext__(self) -> bytes:
        return await anext(self._answers)

    async def aclose(self) -> None:
        await self._answers.aclose()


@dataclass
class FakeDirectory:
    """A registry's keys."""

    keys: dict[bytes, KeyFacts] = field(default_factory=dict)
    away: bool = False
    asked: int = 0
    gate: asyncio.Event | None = None

    async def resolve(self, secret_sha256: bytes) -> KeyFacts:
        self.asked += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.away:
            raise Unavailable("the registry is away")
        if secret_sha256 not in self.keys:
            raise NotFound("no live key has this hash")
        return self.keys[secret_sha256]


@dataclass
class FakeRepository:
    """A registry's publications and a scheduler that does at once what `done` says."""

    versions: list[PublishedVersion] = field(default_factory=list)
    placed: list[Placement] = field(default_factory=list)
    done: Callable[[Placement], None] = field(default=lambda wish: None)
    away: bool = False

    async def published(self) -> tuple[PublishedVersion, ...]:
        if self.away:
            raise Unavailable("the registry is away")
        return tuple(self.versions)

    async def version(self, model: ModelName, version: ModelVersion) -> PublishedVersion:
        found = [one for one in self.versions if one.model == model and version in ("", one.version)]
        if not found:
            raise NotFound(f"no version of model {model!r}")
        return found[-1]

    async def place(self, placement: Placement) -> Placement:
        self.placed.append(placement)
        self.done(placement)
        return placement


def notice_of(
    model: str,
    tenant: str = "t",
    *,
    aliases: dict[str, tuple[str, int]] | None = None,
    withdrawn: Sequence[str] = (),
    shared_with: Sequence[str] = (),
    generation: int = 1,
    digests: Sequence[str] = (),
) -> ModelNotice:
    """`aliases`: version and weight by name; `withdrawn`: versions, `digests`: theirs."""
    return ModelNotice(
        ModelName(model),
        TenantId(tenant),
        frozenset(shared_with),
        tuple(AliasTarget(name, ModelVersion(to), DIGEST, weight, 1) for name, (to, weight) in (aliases or {}).items()),
        frozenset(Digest(digest) for digest in digests),
        frozenset(ModelVersion(version) for version in withdrawn),
        generation=generation,
    )


def published(model: str, version: str = "1") -> PublishedVersion:
    return PublishedVersion(ModelName(model), ModelVersion(version), DIGEST, "tensor", 0)
