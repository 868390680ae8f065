"""A whole mesh whose workers are full: who waits, who is served when, who is turned away and with which words; and what remains
of it when a scheduler or etcd is killed meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import httpx
import pytest

from tests.support.adding import adding
from tests.support.commands import done, until_shown
from tests.support.fleet_calls import Operator, operator_of
from tests.support.mesh import RunningMesh, running_mesh
from tests.support.room import size, until_busy, until_empty, until_waiting
from tests.support.slow_calls import Ended, SlowCalls, Task, cancelled, goes_on, slow_calls, warm_traffic
from tests.support.slow_model import settings_for, slow_model, slow_words, trust_operator
from tests.support.waiting import eventually

PLACES = 8
"""Of two workers together."""

WAIT_S = 8.0
"""As long as a request waits at most that has no deadline."""

QUEUE_OF_TENANT = 921
"""What one tenant has of a model's queue of 1,024 while it is alone."""

TENANTS = ("anna", "ben", "carl")


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    folder = tmp_path_factory.mktemp("capacity")
    settings = {"PENSTOCK_MAX_IN_FLIGHT": str(PLACES // 2), "PENSTOCK_CAPACITY_WAIT_S": str(WAIT_S), **settings_for(folder)}
    with running_mesh(folder / "data", "--no-demo", settings=settings) as running:
        trust_operator(running, folder)
        for model in (slow_model(folder / "slow"), slow_words(folder / "words"), adding(folder / "warm", "warm", 1)):
            pushed = running.penstock("models", "push", str(model), "--copies", "2", "--shared-with", "*")
            assert pushed.returncode == 0, pushed.stderr
        yield running


@pytest.fixture(scope="module")
def keys(mesh: RunningMesh) -> dict[str, str]:
    return {each: mesh.penstock("keys", "create", each, "--tenant", each).stdout.strip() for each in TENANTS}


@pytest.fixture
async def operator(mesh: RunningMesh) -> AsyncIterator[Operator]:
    async with operator_of(mesh) as made:
        yield made


@pytest.fixture
async def calls(mesh: RunningMesh, keys: dict[str, str]) -> AsyncIterator[SlowCalls]:
    """And afterwards nobody waits anywhere."""
    async with slow_calls(mesh, keys) as made:
        yield made
    await until_empty(mesh)


async def test_three_tenants_with_backlogs_are_served_in_turns(mesh: RunningMesh, calls: SlowCalls) -> None:
    asking = calls.send("anna", 60)
    await until_waiting(mesh, 60 - PLACES)
    for tenant in ("ben", "carl"):
        asking += calls.send(tenant, 20)
    await until_waiting(mesh, 60)
    begun = len(calls.ended)
    assert all(each.well for each in await asyncio.gather(*asking)), calls.ended
    turns = Counter(each.tenant for each in calls.ended[begun + PLACES : begun + PLACES + 30])
    assert all(8 <= turns[tenant] <= 12 for tenant in TENANTS), [each.tenant for each in calls.ended]


async def test_a_tenant_that_a_rule_puts_first_is_served_first_and_who_comes_too_late_for_that_is_told_at_once(
    mesh: RunningMesh, calls: SlowCalls, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text('[[rules]]\nname = "first"\ntenants = ["carl"]\npriority_class = 0\n')
    await done(mesh, "fleet", "policy", "set", str(rules))
    asking = calls.send("anna", 40) + calls.send("ben", 40)
    await until_waiting(mesh, 40)
    begun = len(calls.ended)
    asking += calls.send("carl", 10)
    assert all(each.well for each in await asyncio.gather(*asking)), calls.ended
    order = [each.tenant for each in calls.ended]
    assert order[begun : begun + 10 + 2 * PLACES].count("carl") == 10, order

    before = len(calls.ended)
    # The last place of a worker is for whoever has none there: anna has, as long as she has more waiting.
    ahead = calls.send("carl", 100, 0.1) + calls.send("anna", 40, 0.1)
    await until_waiting(mesh, 110)
    await eventually(lambda: len(calls.ended) >= before + 10)
    late = await calls.ask("anna", timeout_s=1.0)
    assert late.code is grpc.StatusCode.RESOURCE_EXHAUSTED, late
    assert late.error is not None
    assert "are to be served before this one" in late.error.message
    assert late.retry_after_s is not None
    assert 0.1 <= late.retry_after_s <= 60
    await cancelled(*ahead)
    rules.write_text("")
    await done(mesh, "fleet", "policy", "set", str(rules))


async def test_whoever_waits_in_vain_is_told_when_its_time_is_over_and_when_to_come_again(
    mesh: RunningMesh, calls: SlowCalls, keys: dict[str, str]
) -> None:
    full = await filled(mesh, calls, WAIT_S + 1.5)
    async with httpx.AsyncClient(base_url=mesh.http_url, headers={"authorization": f"Bearer {keys['ben']}"}) as http:
        patient = asyncio.create_task(calls.ask("ben", timeout_s=None))
        posted = asyncio.create_task(http.post("/v1/embeddings", json={"model": "slow-words", "input": "0"}, timeout=30))
        hurried = await calls.ask("carl", timeout_s=1.0)
        assert hurried.code is grpc.StatusCode.DEADLINE_EXCEEDED, hurried
        given_up, answer = await patient, await posted
    assert given_up.code is grpc.StatusCode.RESOURCE_EXHAUSTED, given_up
    assert given_up.error is not None
    assert "had a place for it" in given_up.error.message, given_up
    assert given_up.retry_after_s is not None
    assert given_up.took_s >= WAIT_S - 0.5
    assert answer.status_code == 503, answer.text
    assert answer.json()["error"]["code"] == "overloaded"
    assert int(answer.headers["retry-after"]) >= 1
    await cancelled(*full)


async def test_who_goes_away_leaves_its_turn_to_the_next(mesh: RunningMesh, calls: SlowCalls) -> None:
    full = await filled(mesh, calls, 0.5)
    gone = calls.send("ben", 40, 5.0)
    await until_waiting(mesh, 40)
    after = calls.send("carl", 4)
    await until_waiting(mesh, 44)
    await cancelled(*gone)
    assert all(each.well for each in await asyncio.gather(*after, *full)), calls.ended


@pytest.mark.timeout(120)
async def test_two_thousand_that_queue_and_go_leave_nothing_behind(mesh: RunningMesh, calls: SlowCalls) -> None:
    processes = ("scheduler", "gateway", "worker-1", "worker-2")
    grown: list[dict[str, tuple[float, float]]] = []
    for _ in range(3):
        full = await filled(mesh, calls, 4.0)
        crowd = calls.send("anna", 1000)
        await until_waiting(mesh, QUEUE_OF_TENANT)
        await eventually(lambda: any(not each.well for each in calls.ended))
        refused = [each for each in calls.ended if not each.well]
        assert {each.code for each in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert all(each.retry_after_s for each in refused)
        assert all("its part of the 1024 that may" in each.error.message for each in refused if each.error), refused[0]
        other = asyncio.create_task(calls.ask("ben"))
        await until_waiting(mesh, QUEUE_OF_TENANT + 1)
        await cancelled(*crowd, *full)
        assert (await other).well, "one tenant does not keep the others out"
        await until_empty(mesh)
        calls.ended.clear()
        grown.append({each: await size(mesh, each) for each in processes})
    for each in processes:
        (first_bytes, first_files), (last_bytes, last_files) = grown[0][each], grown[-1][each]
        assert last_bytes < first_bytes + 24 * 2**20, (each, grown)
        assert last_files <= first_files + 8, (each, grown)


@pytest.mark.timeout(120)
async def test_a_killed_scheduler_costs_no_warm_request_and_leaves_no_queued_one_hanging(
    mesh: RunningMesh, operator: Operator, calls: SlowCalls
) -> None:
    async with alone(operator), warm_calls(mesh, calls) as warm:
        queued = calls.send("anna", 10, 0.3) + calls.send("ben", 10, 0.3)
        await until_waiting(mesh, 10)
        os.kill(mesh.pid_of("scheduler"), signal.SIGKILL)
        ended = await asyncio.wait_for(asyncio.gather(*queued), 30)
        assert sum(each.well for each in ended) >= 2, "what was at the worker is answered"
        check_told_to_retry(ended)
        await until_shown(mesh, "fleet", says="slow 1: READY")
        again = await asyncio.gather(*calls.send("anna", 8), *calls.send("carl", 8))
        await goes_on(warm)
    if not all(each.well for each in again):
        check_told_to_retry(again)
    assert all(each.well for each in warm.ended), [each for each in warm.ended if not each.well]


@pytest.mark.timeout(120)
async def test_a_killed_etcd_costs_nobody_anything(mesh: RunningMesh, operator: Operator, calls: SlowCalls) -> None:
    async with alone(operator), warm_calls(mesh, calls) as warm:
        queued = calls.send("anna", 10, 0.2) + calls.send("ben", 10, 0.2)
        await until_waiting(mesh, 10)
        os.kill(mesh.pid_of("etcd"), signal.SIGKILL)
        assert all(each.well for each in await asyncio.gather(*queued)), calls.ended
        await goes_on(warm)
        await until_shown(mesh, "fleet", says="slow 1: READY")
        assert all(each.well for each in await asyncio.gather(*calls.send("carl", 12))), calls.ended
    assert all(each.well for each in warm.ended), [each for each in warm.ended if not each.well]


async def filled(mesh: RunningMesh, calls: SlowCalls, seconds: float) -> list[Task]:
    """Every place is taken, by requests of that long; of each worker's one tenant alone may have all but one."""
    at_work = calls.send("anna", PLACES - 2, seconds)
    await until_busy(mesh, PLACES - 2)
    at_work += calls.send("carl", 2, seconds)
    await until_busy(mesh, PLACES)
    return at_work


@asynccontextmanager
async def alone(operator: Operator) -> AsyncIterator[None]:
    """One worker has the slow model, so that the other one has room for whatever else is asked."""
    await operator.wish("slow", 1)
    await operator.until_ready("slow", 1)
    yield
    await operator.wish("slow", 2)
    await operator.until_ready("slow", 2)


@asynccontextmanager
async def warm_calls(mesh: RunningMesh, calls: SlowCalls) -> AsyncIterator[SlowCalls]:
    """Of a model that both workers have, all the while."""
    async with slow_calls(mesh, calls.keys) as warm, warm_traffic(warm, "carl", "warm"):
        await goes_on(warm)
        yield warm


def check_told_to_retry(ended: Sequence[Ended]) -> None:
    """Whoever was not answered may come again, and knows when."""
    for each in ended:
        if not each.well:
            assert each.code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE), each
            assert each.retry_after_s, each
