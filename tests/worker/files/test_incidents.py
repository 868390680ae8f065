"""Incidents reach the registry: bounded, once for each, and without anybody waiting."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from runtime.channel import inner_channel
from runtime.errors import DataLoss
from runtime.identity import NodeIdentity, Role
from tests.registry.harness import enrol_all, served
from tests.support.forwarder import forwarder_to
from tests.support.manual_clock import ManualClock
from tests.worker.files.small_registry import SmallRegistry
from worker.files.incidents import WAITING_AT_MOST, Incidents


@pytest.fixture(scope="module")
def identities(tmp_path_factory: pytest.TempPathFactory) -> dict[Role, NodeIdentity]:
    return enrol_all(tmp_path_factory.mktemp("identities"))


class Rig:
    def __init__(self, registry: SmallRegistry, clock: ManualClock, incidents: Incidents) -> None:
        self.registry, self.clock, self.incidents = registry, clock, incidents

    async def told(self, count: int) -> list[str]:
        """What about, once so many were told; time passes meanwhile."""
        async with asyncio.timeout(20):
            while len(self.registry.incidents) < count:
                await self.clock.advance(1.0)
                await asyncio.sleep(0.002)
        return [incident.subject for incident in self.registry.incidents]


@asynccontextmanager
async def rig_on(identities: dict[Role, NodeIdentity], *, away: bool = False) -> AsyncIterator[Rig]:
    registry, clock = SmallRegistry(), ManualClock()
    async with served([registry.register], identities) as server:
        async with forwarder_to(int(server.address.rpartition(":")[2])) as hop:
            if away:
                await hop.cut()
            async with inner_channel(hop.endpoint, identities[Role.WORKER], Role.REGISTRY) as channel:
                incidents = Incidents(channel, clock, random.Random(1))
                async with incidents.told():
                    rig = Rig(registry, clock, incidents)
                    yield rig


async def test_one_is_told_whole_and_cut_to_length(identities: dict[Role, NodeIdentity]) -> None:
    async with rig_on(identities) as rig:
        rig.incidents.report(DataLoss("d" * 1000), "s" * 1000)
        await rig.told(1)
        (incident,) = rig.registry.incidents
        assert (incident.reason, incident.subject, incident.detail) == ("DATA_LOSS", "s" * 256, "d" * 500)


async def test_the_same_is_told_again_only_after_a_while(identities: dict[Role, NodeIdentity]) -> None:
    async with rig_on(identities) as rig:
        for subject in ("a", "a", "b", "a"):
            rig.incidents.report(DataLoss("x"), subject)
        assert await rig.told(2) == ["a", "b"]
        await rig.clock.advance(600.0)
        rig.incidents.report(DataLoss("x"), "a")
        assert await rig.told(3) == ["a", "b", "a"]


async def test_of_many_at_once_some_are_told_and_nobody_waits(identities: dict[Role, NodeIdentity]) -> None:
    async with rig_on(identities) as rig:
        for number in range(5_000):
            rig.incidents.report(DataLoss("x"), str(number))
        assert await rig.told(WAITING_AT_MOST) == [str(number) for number in range(WAITING_AT_MOST)]
        assert len(rig.incidents._told_s) <= 1_000


async def test_a_registry_that_is_away_is_tried_some_times_and_the_next_is_told(identities: dict[Role, NodeIdentity]) -> None:
    async with rig_on(identities, away=True) as rig:
        rig.incidents.report(DataLoss("x"), "a")
        async with asyncio.timeout(20):
            while rig.incidents._waiting.qsize() or rig.clock._now_s < 1100.0:
                await rig.clock.advance(1.0)
                await asyncio.sleep(0.002)
        assert rig.registry.incidents == []
