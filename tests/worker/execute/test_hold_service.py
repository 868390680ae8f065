"""HoldSlot and ReleaseSlot on a real server: who may, what is checked, and that a peer that goes away has withdrawn."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from penstock.worker.v1 import worker_pb2, worker_pb2_grpc
from prometheus_client.registry import CollectorRegistry

from runtime.channel import inner_channel
from runtime.errors import Code, PenstockError
from runtime.identity import Authority, Role
from runtime.ids import WorkerId
from runtime.serving import Listen, serving
from runtime.status import error_of
from tests.support.waiting import eventually
from tests.worker.slow_copy import SlowCopy
from worker.execute.execution import SERVICE, Execution
from worker.execute.hold_service import HoldService
from worker.holds import HoldGone, HoldId
from worker.inference import TableInference
from worker.metrics import register_metrics
from worker.models import ModelTable
from worker.quota import QuotaGuard, WorkerFull

HOLD = "0123456789abcdef" * 2


@dataclass
class Rig:
    authority: Authority
    folder: Path
    port: int
    execution: Execution
    inference: TableInference
    table: ModelTable

    @property
    def guard(self) -> QuotaGuard:
        return self.inference.guard

    @asynccontextmanager
    async def stub(self, role: Role = Role.SCHEDULER) -> AsyncIterator[Any]:
        identity = self.authority.enrol(self.folder / role.value, role)
        async with inner_channel(f"127.0.0.1:{self.port}", identity, Role.WORKER) as channel:
            yield worker_pb2_grpc.WorkerServiceStub(channel)


@asynccontextmanager
async def rig_of(folder: Path, *, places: int = 1) -> AsyncIterator[Rig]:
    authority = Authority.open(folder / "ca")
    identity = authority.enrol(folder / "worker", Role.WORKER)
    table = ModelTable()
    table.add(SlowCopy("m", "1"))
    table.add(SlowCopy("m", "2"))
    inference = TableInference(table, max_in_flight=places)
    loading = worker_pb2.ModelCopy(model="m", version="3", state=worker_pb2.MODEL_STATE_LOADING, reason="fetching")
    execution = Execution(
        inference,
        WorkerId(identity.node_id),
        asyncio.Event(),
        copies=lambda: (loading,),
        holds=HoldService(inference, table),
    )
    async with serving([Listen("127.0.0.1", 0, identity)], [execution.register], [SERVICE], drain_grace_s=0.1) as running:
        yield Rig(authority, folder, running.ports[0], execution, inference, table)


def hold(hold_id: str = HOLD, model: str = "m", **fields: Any) -> worker_pb2.HoldSlotRequest:
    return worker_pb2.HoldSlotRequest(**{"hold_id": hold_id, "model": model, "ttl_ms": 2000, **fields})


async def failure(call: Any) -> PenstockError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return error_of(refused.value)


async def test_a_place_is_kept_for_the_newest_ready_version_or_the_one_that_is_named(tmp_path: Path) -> None:
    async with rig_of(tmp_path, places=2) as rig, rig.stub() as stub:
        answer = await stub.HoldSlot(hold())
        assert (answer.version, answer.load.in_flight, answer.load.max_in_flight) == ("2", 1, 2)
        assert (await stub.HoldSlot(hold("f" * 32, version="1"))).version == "1"
        await stub.ReleaseSlot(worker_pb2.ReleaseSlotRequest(hold_id=HOLD))
        assert rig.guard.in_flight == 1


@pytest.mark.parametrize("role", [Role.GATEWAY, Role.OPERATOR, Role.WORKER])
async def test_schedulers_alone_may_ask(tmp_path: Path, role: Role) -> None:
    async with rig_of(tmp_path) as rig, rig.stub(role) as stub:
        for call in (stub.HoldSlot(hold()), stub.ReleaseSlot(worker_pb2.ReleaseSlotRequest(hold_id=HOLD))):
            assert (await failure(call)).code is Code.PERMISSION_DENIED
        assert rig.guard.in_flight == 0


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (hold(""), "hold_id '' is not 128 bits in hex"),
        (hold("F" * 32), "32 lower-case hex digits are expected"),
        (hold(ttl_ms=0), "ttl_ms is 0; say how long"),
        (hold(ttl_ms=600_001), "ttl_ms is 600001; up to 600000 is taken"),
        (hold(wait_ms=600_001), "wait_ms is 600001; up to 600000 is taken"),
        (hold(token_sha256=b"short"), "token_sha256 has 5 bytes; 32 are expected, or none"),
    ],
)
async def test_fields_that_make_no_sense_are_refused_with_what_is_expected(
    tmp_path: Path, request_: worker_pb2.HoldSlotRequest, says: str
) -> None:
    async with rig_of(tmp_path) as rig, rig.stub() as stub:
        error = await failure(stub.HoldSlot(request_))
        assert error.code is Code.INVALID_ARGUMENT
        assert says in error.message


async def test_a_model_that_does_not_answer_here_is_said_to_be_absent_or_in_which_state_it_is(tmp_path: Path) -> None:
    async with rig_of(tmp_path) as rig, rig.stub() as stub:
        assert (await failure(stub.HoldSlot(hold(model="other")))).code is Code.NOT_FOUND
        assert (await failure(stub.HoldSlot(hold(version="9")))).code is Code.NOT_FOUND
        error = await failure(stub.HoldSlot(hold(version="3")))
        assert error.code is Code.FAILED_PRECONDITION
        assert error.message == "model 'm' version 3 is LOADING here, not READY: fetching"


async def test_where_no_place_comes_free_in_time_the_worker_is_full(tmp_path: Path) -> None:
    async with rig_of(tmp_path) as rig, rig.stub() as stub:
        with rig.guard.enter(""):
            for wait_ms in (0, 20):
                error = await failure(stub.HoldSlot(hold(wait_ms=wait_ms)))
                assert isinstance(error, WorkerFull)
                assert error.retry_after_s


async def test_a_scheduler_that_goes_away_while_its_hold_waits_has_withdrawn_it(tmp_path: Path) -> None:
    async with rig_of(tmp_path) as rig:
        with rig.guard.enter(""):
            async with rig.stub() as stub:
                asked = stub.HoldSlot(hold(wait_ms=60_000))
                await eventually(lambda: rig.inference.holds.waiting == 1)
            await eventually(lambda: rig.inference.holds.waiting == 0)
            assert asked.done()
        assert rig.guard.in_flight == 0


async def test_a_hold_that_waits_can_be_released_by_its_id(tmp_path: Path) -> None:
    async with rig_of(tmp_path) as rig, rig.stub() as stub:
        with rig.guard.enter(""):
            asked = asyncio.ensure_future(stub.HoldSlot(hold(wait_ms=60_000)))
            await eventually(lambda: rig.inference.holds.waiting == 1)
            await stub.ReleaseSlot(worker_pb2.ReleaseSlotRequest(hold_id=HOLD))
            assert isinstance(await failure(asked), HoldGone)


async def test_a_model_that_is_unloaded_while_a_hold_waits_for_it_keeps_no_place(tmp_path: Path) -> None:
    async with rig_of(tmp_path) as rig, rig.stub() as stub:
        with rig.guard.enter(""):
            asked = asyncio.ensure_future(stub.HoldSlot(hold(version="1", wait_ms=60_000)))
            await eventually(lambda: rig.inference.holds.waiting == 1)
            await rig.table.remove(SlowCopy("m", "1").spec.model, SlowCopy("m", "1").spec.version)
        assert (await failure(asked)).code is Code.NOT_FOUND
        assert rig.guard.in_flight == 0


async def test_a_call_keeps_its_place_while_its_payload_comes_and_gives_it_back_if_it_is_cancelled(tmp_path: Path) -> None:
    async with rig_of(tmp_path) as rig, rig.stub() as stub, rig.stub(Role.GATEWAY) as gateway:
        await stub.HoldSlot(hold())
        call = gateway.Execute()
        opening = worker_pb2.RequestOpen(method=worker_pb2.METHOD_INFER, model="m", payload=b"x", payload_bytes=2, hold_id=HOLD)
        await call.write(worker_pb2.ExecuteRequest(frames=[worker_pb2.RequestFrame(call_id=1, open=opening)]))
        await eventually(lambda: rig.execution.open_calls == 1)
        left_s = rig.inference.holds._kept[HoldId(HOLD)].timer.when() - asyncio.get_running_loop().time()
        assert left_s > 2  # more than the hold's own time
        cancel = worker_pb2.RequestFrame(call_id=1, cancel=worker_pb2.RequestCancel())
        await call.write(worker_pb2.ExecuteRequest(frames=[cancel]))
        await eventually(lambda: rig.execution.open_calls == 0)
        assert (rig.inference.holds.kept, rig.guard.in_flight) == (0, 0)
        call.cancel()


async def test_holds_are_counted_for_prometheus(tmp_path: Path) -> None:
    async with rig_of(tmp_path) as rig, rig.stub() as stub:
        registry = CollectorRegistry()
        register_metrics(rig.table, rig.inference, registry)
        await stub.HoldSlot(hold())
        told = {name: registry.get_sample_value(f"penstock_worker_holds_{name}") for name in ("granted", "kept", "waiting")}
        assert told == {"granted": 1.0, "kept": 1.0, "waiting": 0.0}


async def test_a_drain_refuses_new_holds_and_ends_those_there_are(tmp_path: Path) -> None:
    async with rig_of(tmp_path, places=1) as rig, rig.stub() as stub:
        await stub.HoldSlot(hold())
        waiting = asyncio.ensure_future(stub.HoldSlot(hold("f" * 32, wait_ms=60_000)))
        await eventually(lambda: rig.inference.holds.waiting == 1)
        await rig.execution.drain(0.0)
        assert (await failure(waiting)).reason == "DRAINING"
        assert rig.guard.in_flight == 0
        assert (await failure(stub.HoldSlot(hold("e" * 32)))).reason == "DRAINING"
