"""Three real schedulers over a real etcd: the leader is killed, frozen and thawed, asked to end. Nothing is placed twice, and
nothing is lost."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio
from penstock.registry.v1 import models_pb2, models_pb2_grpc
from penstock.scheduler.v1 import scheduler_pb2
from penstock.worker.v1 import presence_pb2, worker_pb2

from runtime.etcd import EtcdStore
from runtime.etcd_members import EtcdSettings
from runtime.identity import NodeIdentity, Role
from runtime.ids import (
    DEFAULT_TENANT,
    Digest,
    ModelName,
    ModelVersion,
    Region,
    WorkerId,
    assignment_key,
    assignments_prefix,
    election_prefix,
    model_notice_key,
    presence_key,
)
from runtime.keyvalue import Event, KeyValue, Lease, Put
from runtime.notices import AliasTarget, ModelNotice, PendingTarget, model_payload
from runtime.records import sign_record
from runtime.serving import Listen, serving
from scheduler.codec import assignment_from
from tests.support.hosts import HostedMesh, Service, hosted_mesh

HERE = Region("here")
TTL_S = 3
OLD, NEW = Digest("1" * 64), Digest("2" * 64)
READY, LOADING = worker_pb2.MODEL_STATE_READY, worker_pb2.MODEL_STATE_LOADING


class Registry(models_pb2_grpc.ModelServiceServicer):
    """Moves an alias when it is told to."""

    def __init__(self) -> None:
        self.settled: list[tuple[str, int, str]] = []

    async def SettleAlias(self, request: models_pb2.SettleAliasRequest, context: Any) -> models_pb2.SettleAliasResponse:
        self.settled.append((request.alias, request.generation, request.abandoned_because))
        return models_pb2.SettleAliasResponse()


Registry.__abstractmethods__ = frozenset()


@dataclass
class World:
    """Schedulers as processes; workers and the registry as thin as their contracts allow."""

    mesh: HostedMesh
    store: EtcdStore
    registry: Registry
    registry_address: str
    registry_identity: NodeIdentity
    cold: set[str] = field(default_factory=set)
    """Versions that workers go on loading."""
    history: list[Event] = field(default_factory=list)
    wished: dict[str, int] = field(default_factory=dict)
    """What was agreed to, and its generation."""

    async def scheduler(self, name: str) -> Service:
        address = self.registry_address
        service = self.mesh.start("scheduler", name, region=HERE, lease_ttl_s=TTL_S, registry_address=address)
        return await service.started()

    async def candidates(self) -> list[tuple[str, KeyValue]]:
        """Names of services, the leader first."""
        items = (await self.store.range(election_prefix("mesh"))).items
        names = {str(service.identity.node_id): service.name for service in self.mesh.services.values()}
        found = [(names[scheduler_pb2.Leader.FromString(item.value).scheduler_id], item) for item in items]
        return sorted(found, key=lambda pair: pair[1].create_revision)

    async def until_led(self, *, by_other_than: str = "", within_s: float = 30.0) -> tuple[Service, float]:
        """The leader, and after how long there was one."""
        began_s = time.monotonic()
        async with asyncio.timeout(within_s):
            while True:
                standing = await self.candidates()
                if standing and standing[0][0] != by_other_than:
                    return self.mesh.services[standing[0][0]], time.monotonic() - began_s
                await asyncio.sleep(0.02)

    async def wish(self, name: str, *asked: Service) -> None:
        """Until somebody agreed."""
        wanted = scheduler_pb2.Placement(model=name, version="1", digest=OLD, copies=1, region=HERE)
        async with asyncio.timeout(30):
            while True:
                for service in asked:
                    try:
                        self.wished[name] = (await self.mesh.place(service, wanted)).generation
                    except grpc.aio.AioRpcError:
                        continue
                    return
                await asyncio.sleep(0.1)

    async def until_held(self, within_s: float = 20.0) -> None:
        """Every wish that was agreed to is assigned, once."""
        async with asyncio.timeout(within_s):
            while Counter(name for names in (await self.held()).values() for name in names) != Counter(self.wished.keys()):
                await asyncio.sleep(0.05)

    async def held(self) -> Mapping[str, list[str]]:
        items = (await self.store.range(assignments_prefix(HERE))).items
        return {item.key: [each.model for each in assignment_from(item.value) if each.version == "1"] for item in items}

    async def move(self, generation: int, *, pending: bool) -> None:
        """The registry tells that `stable` of the model `moved` is to go from version 1 to 2, or went."""
        target = PendingTarget(ModelVersion("2"), NEW, 0, int(time.time() * 1000)) if pending else None
        version, digest = ("1", OLD) if pending else ("2", NEW)
        alias = AliasTarget("stable", ModelVersion(version), digest, 0, generation, target)
        notice = ModelNotice(ModelName("moved"), DEFAULT_TENANT, frozenset(), (alias,), generation=generation)
        await self.store.put(model_notice_key(notice.model), sign_record(self.registry_identity, model_payload(notice)))

    @asynccontextmanager
    async def worker(self, name: str) -> AsyncIterator[None]:
        identity = self.mesh.authority.enrol(self.mesh.folder / name, Role.WORKER)
        async with self.store.lease(ttl_s=15) as lease:
            working = asyncio.create_task(self._obey(identity, lease))
            try:
                yield
            finally:
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)

    async def _obey(self, identity: NodeIdentity, lease: Lease) -> None:
        who, sequence = WorkerId(identity.node_id), 0
        while True:
            item = await self.store.get(assignment_key(HERE, who))
            sequence += 1
            copies = [
                worker_pb2.ModelCopy(
                    model=each.model,
                    version=each.version,
                    digest=each.digest,
                    state=LOADING if each.version in self.cold else READY,
                )
                for each in (assignment_from(item.value) if item is not None else ())
            ]
            presence = presence_pb2.Presence(
                worker_id=who,
                region=HERE,
                address="127.0.0.1:1",
                models=copies,
                max_in_flight=8,
                sequence=sequence,
                wall_time_ms=int(time.time() * 1000),
            )
            lease.put(presence_key(HERE, who), sign_record(identity, presence.SerializeToString()))
            await asyncio.sleep(0.2)

    @asynccontextmanager
    async def recording(self) -> AsyncIterator[None]:
        """Every revision that there is while the context lasts."""
        task = asyncio.create_task(self._record())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _record(self) -> None:
        revision = (await self.store.range("/penstock/nothing")).revision
        async with self.store.changes("/penstock/", revision) as changes:
            while True:
                self.history.extend((await changes.read()).events)

    def placed_twice(self) -> list[str]:
        """Where, in all that was ever written, a model was assigned to more workers than were wished for."""
        assigned: dict[str, list[str]] = {}
        found = []
        for event in self.history:
            if not event.key.startswith(assignments_prefix(HERE)):
                continue
            names = assignment_from(event.item.value) if isinstance(event, Put) else ()
            assigned[event.key] = [each.model for each in names if each.version == "1"]
            counts = Counter(name for each in assigned.values() for name in each)
            found += [f"{name} at {event.key}" for name, count in counts.items() if count > 1]
        return found


@asynccontextmanager
async def opened_world(folder: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(hosted_mesh(folder))
        store = await stack.enter_async_context(EtcdStore(EtcdSettings.at(mesh.etcd.endpoint)))
        identity = mesh.authority.enrol(folder / "registry", Role.REGISTRY)
        registry = Registry()  # type: ignore[abstract]  # made whole above
        register = partial(models_pb2_grpc.add_ModelServiceServicer_to_server, registry)
        listen = Listen("127.0.0.1", 0, identity)
        running = await stack.enter_async_context(serving([listen], [register], (), drain_grace_s=0.2))
        world = World(mesh, store, registry, f"127.0.0.1:{running.ports[0]}", identity)
        await stack.enter_async_context(world.recording())
        for number in range(4):
            await stack.enter_async_context(world.worker(f"worker-{number}"))
        yield world


async def test_a_leader_killed_frozen_and_asked_to_end_is_followed_by_the_next(tmp_path: Path) -> None:
    async with opened_world(tmp_path) as world:
        everyone = [await world.scheduler("one")]
        first, _ = await world.until_led()
        everyone += await asyncio.gather(world.scheduler("two"), world.scheduler("three"))
        assert first.name == "one"
        await world.wish("moved", first)
        for number in range(6):
            await world.wish(f"before-{number}", *everyone)
        await world.until_held()

        # An alias move is under way when its scheduler is killed; the next one carries it through.
        world.cold.add("2")
        await world.move(5, pending=True)
        await _until_log(first, "alias_warming")
        await first.kill()
        others = [service for service in everyone if service is not first]
        wishing = asyncio.create_task(_wish_on(world, "killed", others))
        second, took_s = await world.until_led(by_other_than=first.name)
        sys.stdout.write(f"takeover after kill -9: {took_s:.2f} s; the lease lasts {TTL_S} s\n")
        assert took_s < TTL_S + 5
        await wishing
        await world.until_held()
        assert world.registry.settled == []
        world.cold.clear()
        async with asyncio.timeout(20):
            while not world.registry.settled:
                await asyncio.sleep(0.05)
        assert set(world.registry.settled) == {("stable", 5, "")}
        await world.move(6, pending=False)

        # Frozen for longer than its lease in the midst of writing, and thawed: it finds that it leads no more.
        back = await world.scheduler("one")
        [third] = [service for service in others if service is not second]
        wishing = asyncio.create_task(_wish_on(world, "frozen", [third, back]))
        second.freeze()
        leader, took_s = await world.until_led(by_other_than=second.name)
        sys.stdout.write(f"takeover after SIGSTOP: {took_s:.2f} s\n")
        assert took_s < TTL_S + 5
        assert leader is third, "who began anew stands at the back"
        await wishing
        await world.until_held()
        writes = len(second.said("assigned"))
        second.thaw()
        await _until_log(second, "lease_lost")
        await _until_standing(world, 3)
        for number in range(6):
            await world.wish(f"thawed-{number}", second, third)
        await world.until_held()
        assert [name for name, _ in await world.candidates()] == [third.name, back.name, second.name]
        assert len(second.said("assigned")) == writes, "it has written nothing since"

        # Asked to end it resigns, and the next one leads before the lease could have ended.
        wishing = asyncio.create_task(_wish_on(world, "resigned", [back, second]))
        third.signal(signal.SIGTERM)
        leader, took_s = await world.until_led(by_other_than=third.name)
        sys.stdout.write(f"takeover after SIGTERM: {took_s:.2f} s\n")
        assert leader is back
        assert took_s < TTL_S
        await wishing
        await world.until_held()

        assert world.placed_twice() == []
        assert sum(event.key.startswith(assignments_prefix(HERE)) for event in world.history) >= 10
        assert all("Traceback" not in service.log.read_text() for service in world.mesh.services.values())


async def _wish_on(world: World, name: str, asked: list[Service]) -> None:
    """Wishes without a pause, so that whoever leads is always about to write."""
    for number in range(12):
        await world.wish(f"{name}-{number}", *asked)
        await asyncio.sleep(0.1)


async def _until_log(service: Service, event: str) -> None:
    async with asyncio.timeout(20):
        while event not in service.log.read_text(errors="replace"):
            await asyncio.sleep(0.05)


async def _until_standing(world: World, number: int) -> None:
    async with asyncio.timeout(20):
        while len(await world.candidates()) != number:
            await asyncio.sleep(0.05)
