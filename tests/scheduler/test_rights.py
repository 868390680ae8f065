"""Who may call what of schedulers, and of the workers that they call: one table for every RPC and every node there is; and what
no tenant learns of another's through a gateway.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf.message import Message
from penstock.scheduler.v1 import jobs_pb2 as jobs
from penstock.scheduler.v1 import scheduler_pb2 as fleet
from penstock.scheduler.v1 import scheduler_pb2_grpc
from penstock.worker.v1 import sealed_pb2
from xds import external_processor_pb2, external_processor_pb2_grpc

from runtime.errors import Code
from runtime.identity import NodeIdentity, Role
from scheduler.jobs.room import SERVICES as JOB_SERVICES
from scheduler.servicer import SERVICES as FLEET_SERVICES
from tests.scheduler.mesh import DIGEST
from tests.scheduler.whole import (
    METHODS,
    MODEL,
    WORKER_METHODS,
    Answer,
    RealWorker,
    Whole,
    called,
    methods_of,
    real_worker,
    request_class,
    whole_scheduler,
)

# Y  may: answered, or refused for what is asked and not for who asks        -  PERMISSION_DENIED
RIGHTS = """
                                gw op wk sc rg ev   gw-revoked op-revoked sc-revoked
FleetService/WatchFleet          Y  Y  -  -  -  -   -          -          -
FleetService/ListWorkers         Y  Y  -  -  -  -   -          -          -
FleetService/PlaceModel          Y  Y  -  -  -  -   -          -          -
FleetService/ListPlacements      Y  Y  -  -  -  -   -          -          -
FleetService/ReportDemand        Y  -  -  -  -  -   -          -          -
FleetService/AwaitCapacity       Y  -  -  -  -  -   -          -          -
FleetService/Reserve             Y  Y  -  -  -  -   -          -          -
FleetService/ReleaseReservation  Y  Y  -  -  -  -   -          -          -
FleetService/Drain               -  Y  -  -  -  -   -          -          -
FleetService/Explain             Y  Y  -  -  -  -   -          -          -
FleetService/GetRoutingPolicy    Y  Y  -  -  -  -   -          -          -
FleetService/SetRoutingPolicy    -  Y  -  -  -  -   -          -          -
JobService/SubmitJob             Y  Y  -  -  -  -   -          -          -
JobService/GetJob                Y  Y  -  -  -  -   -          -          -
JobService/WatchJob              Y  Y  -  -  -  -   -          -          -
JobService/CancelJob             Y  Y  -  -  -  -   -          -          -
JobService/ListJobs              Y  Y  -  -  -  -   -          -          -
JobService/ListDeadLetters       Y  Y  -  -  -  -   -          -          -
JobService/ReplayJobs            Y  Y  -  -  -  -   -          -          -
JobService/ClaimJobs             Y  -  -  -  -  -   -          -          -
JobService/ExtendClaims          Y  -  -  -  -  -   -          -          -
JobService/SettleJob             Y  -  -  -  -  -   -          -          -
FileService/UploadFile           Y  Y  -  -  -  -   -          -          -
FileService/GetFile              Y  Y  -  -  -  -   -          -          -
FileService/ListFiles            Y  Y  -  -  -  -   -          -          -
FileService/DeleteFile           Y  Y  -  -  -  -   -          -          -
FileService/ReadFile             Y  Y  -  -  -  -   -          -          -
BatchService/CreateBatch         Y  Y  -  -  -  -   -          -          -
BatchService/GetBatch            Y  Y  -  -  -  -   -          -          -
BatchService/ListBatches         Y  Y  -  -  -  -   -          -          -
BatchService/CancelBatch         Y  Y  -  -  -  -   -          -          -
WorkerService/Execute            Y  Y  -  -  -  -   -          -          -
WorkerService/Status             Y  Y  -  Y  -  -   -          -          -
WorkerService/LoadModel          -  Y  -  Y  -  -   -          -          -
WorkerService/UnloadModel        -  Y  -  Y  -  -   -          -          -
WorkerService/ReadArtifact       -  -  Y  -  -  -   -          -          -
WorkerService/HoldSlot           -  -  -  Y  -  -   -          -          -
WorkerService/ReleaseSlot        -  -  -  Y  -  -   -          -          -
WorkerService/Drain              -  Y  -  Y  -  -   -          -          -
"""
_HEAD, *_ROWS = RIGHTS.strip().splitlines()
TABLE = {row.split()[0]: dict(zip(_HEAD.split(), row.split()[1:], strict=True)) for row in _ROWS}
COLUMNS: Mapping[str, Role] = {
    "gw": Role.GATEWAY,
    "op": Role.OPERATOR,
    "wk": Role.WORKER,
    "sc": Role.SCHEDULER,
    "rg": Role.REGISTRY,
    "ev": Role.ENVOY,
    "gw-revoked": Role.GATEWAY,
    "op-revoked": Role.OPERATOR,
    "sc-revoked": Role.SCHEDULER,
}
_BUGS = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAUTHENTICATED,
}
NOT_ALONE = {"WorkerService/LoadModel", "WorkerService/UnloadModel", "WorkerService/ReadArtifact"}
"""A worker without a mesh around it says UNIMPLEMENTED to these."""

PRIVATE = b"acme's private words"
OWNER, INITECH = jobs.JobOwner(tenant="acme", key_id="key-1"), jobs.JobOwner(tenant="initech")
CHAT = "/v1/chat/completions"
NOTHING = {"JobService": "job_" + "0" * 24, "FileService": "file-" + "0" * 24, "BatchService": "batch_" + "0" * 24}
on_the_modules_loop = pytest.mark.asyncio(loop_scope="module")
REQUESTS: Mapping[str, Mapping[str, Any]] = {
    "FleetService/PlaceModel": {"placement": {"model": MODEL, "version": "1", "digest": DIGEST, "copies": 1}},
    "FleetService/ReportDemand": {"interval_ms": 1_000, "region": "here"},
    "FleetService/AwaitCapacity": {"model": MODEL, "tenant": "initech", "timeout_us": 5_000_000},
    "FleetService/Reserve": {"model": MODEL, "tenant": "initech", "ttl_ms": 1, "token_sha256": hashlib.sha256(b"t").digest()},
    "FleetService/ReleaseReservation": {"reservation_id": f"{'a' * 20}.{'0' * 32}", "tenant": "initech"},
    "FleetService/Drain": {"worker_id": "nobody"},
    "FleetService/Explain": {"model": MODEL},
    "FleetService/SetRoutingPolicy": {"routing_policy": {"rules": [{"name": "nothing"}]}},
    "JobService/SubmitJob": {"owner": INITECH, "call": {"http": {"path": CHAT, "body": b'{"model": "sums"}'}}},
    "JobService/ClaimJobs": {"max_jobs": 1},
    "JobService/ExtendClaims": {"claims": ["0" * 32]},
    "JobService/SettleJob": {"claim": "0" * 32, "answer": {"http": {"status": 200}}},
    "FileService/UploadFile": {"tenant": "initech", "name": "in.jsonl", "purpose": "batch", "data": b"{}"},
    "BatchService/CreateBatch": {"owner": INITECH, "input_file_id": NOTHING["FileService"], "endpoint": CHAT},
    "WorkerService/HoldSlot": {"hold_id": "0" * 32, "model": MODEL, "ttl_ms": 1},
    "WorkerService/ReleaseSlot": {"hold_id": "0" * 32},
}
"""All others are good with the tenant initech, and ids of what is not there."""


@dataclass(slots=True)
class Acme:
    """What acme has here."""

    job_id: str = ""
    dead_id: str = ""
    file_id: str = ""
    batch_id: str = ""


@dataclass(slots=True)
class Everybody:
    whole: Whole
    columns: Mapping[str, NodeIdentity]
    apart: RealWorker
    """Not in the fleet, so it may be drained."""
    acme: Acme

    async def ask(self, column: str, method: str, request: Message) -> Answer:
        identity, known = self.columns[column], METHODS.get(method)
        if known is None:
            return await called(await self.whole.channel(identity, self.apart), WORKER_METHODS[method], request)
        return await called(await self.whole.channel(identity), known, request)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def everybody(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Everybody]:
    folder = tmp_path_factory.mktemp("rights")
    async with AsyncExitStack() as stack:
        whole = await stack.enter_async_context(whole_scheduler(folder))
        apart = await stack.enter_async_context(real_worker(whole.mesh, "apart", revocations=whole.board.revocations))
        columns = {column: whole.mesh.node(column, role) for column, role in COLUMNS.items()}
        for column, identity in columns.items():
            if column.endswith("-revoked"):
                whole.revoke(identity)
        yield Everybody(whole, columns, apart, await _acme_of(whole))


async def _acme_of(whole: Whole) -> Acme:
    file = jobs.UploadFileRequest(tenant="acme", name="in.jsonl", purpose="batch", data=_line(PRIVATE))
    file_id = (await whole.call(Role.GATEWAY, "FileService/UploadFile", file)).message.file.file_id
    asked = {"owner": OWNER, "input_file_id": file_id, "endpoint": CHAT, "metadata": {"of": PRIVATE.decode()}}
    batch_id = (await whole.made("BatchService/CreateBatch", **asked)).batch.batch_id
    call = {"http": {"path": CHAT, "body": b'{"model": "sums", "messages": ["' + PRIVATE + b'"]}'}}
    dead = (await whole.made("JobService/SubmitJob", owner=OWNER, call=call)).job.job_id
    for claimed in (await whole.made("JobService/ClaimJobs", max_jobs=64, wait_ms=10_000)).jobs:
        failure = {"code": int(Code.NOT_FOUND), "message": PRIVATE.decode(), "final": True}
        await whole.made("JobService/SettleJob", claim=claimed.claim, failure=failure)
    far_ms = int(whole.mesh.clock.wall_s() * 1_000) + 3_600_000
    job_id = (await whole.made("JobService/SubmitJob", owner=OWNER, call=call, due_at_ms=far_ms)).job.job_id
    return Acme(job_id, dead, file_id, batch_id)


def _line(text: bytes) -> bytes:
    body = b'{"model": "sums", "messages": ["' + text + b'"]}'
    return b'{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": ' + body + b"}\n"


def request_of(method: str) -> Message:
    kind = request_class(METHODS.get(method) or WORKER_METHODS[method])
    fields = dict(REQUESTS.get(method, {}))
    service = method.partition("/")[0]
    for field in kind.DESCRIPTOR.fields if method not in REQUESTS else ():
        if field.name == "tenant":
            fields["tenant"] = "initech"
        elif field.name in ("job_id", "file_id", "batch_id"):
            fields[field.name] = NOTHING[service]
    return kind(**fields)


def letter_of(method: str, answer: Answer) -> str:
    bugs = _BUGS - {grpc.StatusCode.UNIMPLEMENTED} if method in NOT_ALONE else _BUGS
    assert answer.code not in bugs, answer
    return "-" if answer.code is grpc.StatusCode.PERMISSION_DENIED else "Y"


def test_every_rpc_has_a_row() -> None:
    assert TABLE.keys() == METHODS.keys() | WORKER_METHODS.keys()
    assert {method.containing_service.full_name for method in METHODS.values()} == {*FLEET_SERVICES, *JOB_SERVICES}
    assert all(row.keys() == COLUMNS.keys() for row in TABLE.values())


@on_the_modules_loop
@pytest.mark.parametrize("method", TABLE)
async def test_who_may(everybody: Everybody, method: str) -> None:
    wrong = {}
    for column in COLUMNS:
        answer = await everybody.ask(column, method, request_of(method))
        if letter_of(method, answer) != TABLE[method][column]:
            wrong[column] = answer
    assert wrong == {}


@on_the_modules_loop
async def test_without_a_certificate_of_this_mesh_there_is_no_connection(everybody: Everybody, tmp_path: Path) -> None:
    for channel in everybody.whole.strangers(tmp_path):
        async with channel:
            answer = await called(channel, METHODS["FleetService/ListWorkers"], timeout_s=10)
            assert answer.code is grpc.StatusCode.UNAVAILABLE


@on_the_modules_loop
async def test_the_pickers_port_serves_nothing_else(everybody: Everybody) -> None:
    """It is plaintext, for the Envoy beside it."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{everybody.whole.picker_port}") as channel:
        for method in METHODS.values():
            assert (await called(channel, method, timeout_s=10)).code is grpc.StatusCode.UNIMPLEMENTED
        headers = external_processor_pb2.ProcessingRequest()
        headers.request_headers.end_of_stream = True
        call = external_processor_pb2_grpc.ExternalProcessorStub(channel).Process(iter([headers]), timeout=10)
        assert isinstance(await call.read(), external_processor_pb2.ProcessingResponse)
        call.cancel()


@on_the_modules_loop
async def test_a_stream_ends_when_its_gateway_is_revoked(everybody: Everybody) -> None:
    whole = everybody.whole
    leaving = whole.mesh.node("a gateway that is put out", Role.GATEWAY)
    stub = scheduler_pb2_grpc.FleetServiceStub(await whole.channel(leaving))
    watch, report = stub.WatchFleet(fleet.WatchFleetRequest(), timeout=20), stub.ReportDemand(timeout=20)
    await report.write(fleet.ReportDemandRequest(**REQUESTS["FleetService/ReportDemand"]))
    await watch.read()
    whole.revoke(leaving)
    for call in (watch, report):
        assert await call.code() is grpc.StatusCode.PERMISSION_DENIED


@on_the_modules_loop
async def test_gateways_may_not_leave_the_tenant_out(everybody: Everybody) -> None:
    """That would be everybody's: it is for operators alone."""
    whole, acme = everybody.whole, everybody.acme
    for method, kind in METHODS.items():
        if not any(field.name == "tenant" for field in kind.input_type.fields) or method.startswith("FleetService"):
            continue
        request: Any = request_of(method)
        request.ClearField("tenant")
        for name, value in (("job_id", acme.job_id), ("file_id", acme.file_id), ("batch_id", acme.batch_id)):
            if name in request.DESCRIPTOR.fields_by_name:
                setattr(request, name, value)
        answer = await whole.call(Role.GATEWAY, method, request)
        assert answer.code is grpc.StatusCode.INVALID_ARGUMENT, method
        assert answer.error is not None
        assert "tenant" in answer.error.message


APART: Mapping[str, Callable[[Acme], tuple[Mapping[str, Any], str]]] = {
    "JobService/GetJob": lambda acme: ({"job_id": acme.job_id}, "job_id"),
    "JobService/WatchJob": lambda acme: ({"job_id": acme.job_id}, "job_id"),
    "JobService/CancelJob": lambda acme: ({"job_id": acme.job_id}, "job_id"),
    "FileService/GetFile": lambda acme: ({"file_id": acme.file_id}, "file_id"),
    "FileService/DeleteFile": lambda acme: ({"file_id": acme.file_id}, "file_id"),
    "FileService/ReadFile": lambda acme: ({"file_id": acme.file_id}, "file_id"),
    "FileService/ListFiles": lambda acme: ({"after": acme.file_id}, "after"),
    "BatchService/GetBatch": lambda acme: ({"batch_id": acme.batch_id}, "batch_id"),
    "BatchService/CancelBatch": lambda acme: ({"batch_id": acme.batch_id}, "batch_id"),
    "BatchService/ListBatches": lambda acme: ({"after": acme.batch_id}, "after"),
}
"""What names one thing of acme's, and by which field."""


@on_the_modules_loop
@pytest.mark.parametrize("method", APART)
async def test_what_another_tenant_has_is_not_there(everybody: Everybody, method: str) -> None:
    """In the same words as of what was never there."""
    whole, (fields, name) = everybody.whole, APART[method](everybody.acme)
    kind, theirs = request_class(METHODS[method]), str(fields[name])
    absent = theirs[:-24] + "0" * 24
    told = []
    for each in (theirs, absent):
        answer = await whole.call(Role.GATEWAY, method, kind(tenant="globex", **{name: each}))
        assert answer.code is grpc.StatusCode.NOT_FOUND
        assert answer.error is not None
        told.append((type(answer.error), answer.error.message.replace(each, "it")))
    assert told[0] == told[1]


@on_the_modules_loop
async def test_what_acme_has_is_as_it_was(everybody: Everybody) -> None:
    whole, acme = everybody.whole, everybody.acme
    for method, (fields, _) in ((each, made(acme)) for each, made in APART.items() if "/Get" in each):
        found = (await whole.made(method, tenant="acme", **fields)).SerializeToString()
        assert b"cancel" not in found


@on_the_modules_loop
async def test_another_tenants_file_makes_no_batch(everybody: Everybody) -> None:
    whole, acme = everybody.whole, everybody.acme
    told = []
    for file_id in (acme.file_id, acme.file_id[:-24] + "0" * 24):
        asked = jobs.CreateBatchRequest(owner=jobs.JobOwner(tenant="globex"), input_file_id=file_id, endpoint=CHAT)
        answer = await whole.call(Role.GATEWAY, "BatchService/CreateBatch", asked)
        assert answer.code is grpc.StatusCode.NOT_FOUND
        assert answer.error is not None
        told.append(answer.error.message.replace(file_id, "it"))
    assert told[0] == told[1]


@on_the_modules_loop
async def test_lists_show_ones_own_alone(everybody: Everybody) -> None:
    whole, acme = everybody.whole, everybody.acme
    for tenant, is_there in (("globex", False), ("acme", True)):
        listed = await whole.made("JobService/ListJobs", tenant=tenant)
        dead = await whole.made("JobService/ListDeadLetters", tenant=tenant)
        of_batch = await whole.made("JobService/ListJobs", tenant=tenant, batch_id=acme.batch_id)
        files = await whole.made("FileService/ListFiles", tenant=tenant)
        batches = await whole.made("BatchService/ListBatches", tenant=tenant)
        assert [bool(each) for each in (listed.jobs, dead.jobs, of_batch.jobs, files.files, batches.batches)] == [is_there] * 5
        shown = b"".join(each.SerializeToString() for each in (listed, dead, of_batch, files, batches))
        assert (PRIVATE in shown, acme.job_id.encode() in shown) == (is_there, is_there)


@on_the_modules_loop
async def test_another_tenants_dead_letters_stay_dead(everybody: Everybody) -> None:
    whole, acme = everybody.whole, everybody.acme
    for asked in ({"job_ids": [acme.dead_id]}, {"model": "sums"}, {}):
        assert (await whole.made("JobService/ReplayJobs", tenant="globex", **asked)).replayed == 0
    job = (await whole.made("JobService/GetJob", tenant="acme", job_id=acme.dead_id)).job
    assert job.state == jobs.JOB_STATE_DEAD


@on_the_modules_loop
async def test_one_idempotency_key_is_two_tenants_two_jobs(everybody: Everybody) -> None:
    made = []
    for tenant in ("acme", "globex"):
        asked = {**REQUESTS["JobService/SubmitJob"], "owner": jobs.JobOwner(tenant=tenant), "idempotency_key": "night"}
        made.append(await everybody.whole.made("JobService/SubmitJob", **asked))
    assert [each.existed for each in made] == [False, False]
    assert made[0].job.job_id != made[1].job.job_id
    for each, tenant in zip(made, ("acme", "globex"), strict=True):
        await everybody.whole.made("JobService/CancelJob", tenant=tenant, job_id=each.job.job_id)


@on_the_modules_loop
async def test_an_attempt_is_its_claims_and_nobody_can_tell_a_claim_from_elsewhere(everybody: Everybody) -> None:
    """Whoever has the claim may settle; it is told to the gateway that claimed alone, and stands nowhere else."""
    whole = everybody.whole
    job = (await whole.made("JobService/SubmitJob", **REQUESTS["JobService/SubmitJob"])).job
    due = (await whole.made("JobService/ClaimJobs", max_jobs=64, wait_ms=10_000)).jobs
    (claimed,) = [each for each in due if each.job_id == job.job_id]
    other = whole.mesh.node("another gateway", Role.GATEWAY)
    done = jobs.JobAnswer(http=jobs.HttpAnswer(status=200))
    for guess in (job.job_id, claimed.claim[:-1], claimed.claim.upper() + "%", "%", "_" * 32, ""):
        settling = jobs.SettleJobRequest(claim=guess, answer=done)
        assert (await whole.call(other, "JobService/SettleJob", settling)).code is grpc.StatusCode.ABORTED
        extending = jobs.ExtendClaimsRequest(claims=[guess])
        assert list((await whole.call(other, "JobService/ExtendClaims", extending)).message.claims) == []
    shown = [
        await whole.made("JobService/GetJob", Role.OPERATOR, job_id=job.job_id),
        await whole.made("JobService/ListJobs", Role.OPERATOR),
        await whole.made("JobService/ListDeadLetters", Role.OPERATOR),
    ]
    assert not any(claimed.claim.encode() in each.SerializeToString() for each in shown)
    history = shown[0].job.history
    assert [each.claimed_by for each in history] == [whole.node(Role.GATEWAY).node_id]
    settled = await whole.call(other, "JobService/SettleJob", jobs.SettleJobRequest(claim=claimed.claim, answer=done))
    assert settled.message.state == jobs.JOB_STATE_SUCCEEDED


@on_the_modules_loop
async def test_giving_a_place_back_tells_nothing_and_takes_its_whole_name(everybody: Everybody) -> None:
    """Whoever names it may give it back, 128 random bits among it; who does not know them learns nothing by trying."""
    whole = everybody.whole
    asked = {**REQUESTS["FleetService/Reserve"], "ttl_ms": 60_000, "tenant": "acme"}
    name = (await whole.made("FleetService/Reserve", **asked)).reservation_id
    held = whole.worker.inference.holds
    worker_id, _, hold_id = name.partition(".")
    for guess in (
        f"{worker_id}.{'0' * 32}",
        f"{'a' * 20}.{hold_id}",
        f"{worker_id}.{hold_id[:-1]}{'0' if hold_id[-1] != '0' else '1'}",
    ):
        await whole.made("FleetService/ReleaseReservation", reservation_id=guess, tenant="globex")
        assert held.reserved(hold_id) is not None
    await whole.made("FleetService/ReleaseReservation", reservation_id=name, tenant="acme")
    assert held.reserved(hold_id) is None


@on_the_modules_loop
async def test_the_worker_alone_says_where_sealed_calls_go(everybody: Everybody) -> None:
    """No sealed call is taken on a worker's inner port, whatever the certificate."""
    whole = everybody.whole
    channel = await whole.channel(whole.node(Role.GATEWAY), whole.worker)
    (method,) = methods_of(sealed_pb2).values()
    assert (await called(channel, method)).code is grpc.StatusCode.UNIMPLEMENTED
