"""BatchService over real gRPC, with the driver running: from an uploaded file to result files, as a gateway would see it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from penstock.scheduler.v1 import jobs_pb2

from runtime.errors import Code
from tests.scheduler.jobs.service import CHAT, Service, answered, claim_one, error, service_on

OWNER = jobs_pb2.JobOwner(tenant="acme", key_id="key-1", allowed_models=["sums"])


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with service_on(str(tmp_path / "jobs.db"), tmp_path) as service:
        yield service


async def uploaded(service: Service, data: bytes) -> str:
    first = jobs_pb2.UploadFileRequest(tenant="acme", name="in.jsonl", purpose="batch", data=data)
    return (await (await service.files()).UploadFile(iter([first]))).file.file_id


async def until(service: Service, batch_id: str, *statuses: str) -> jobs_pb2.Batch:
    stub = await service.batches()
    async with asyncio.timeout(20):
        while True:
            batch = (await stub.GetBatch(jobs_pb2.GetBatchRequest(tenant="acme", batch_id=batch_id))).batch
            if batch.status in statuses:
                return batch
            await asyncio.sleep(0.05)


async def test_a_batch_as_a_gateway_sees_it(service: Service) -> None:
    lines = [{"custom_id": f"c{n}", "method": "POST", "url": CHAT, "body": {"model": "sums", "n": n}} for n in range(3)]
    file_id = await uploaded(service, b"\n".join(json.dumps(line).encode() for line in lines))
    request = jobs_pb2.CreateBatchRequest(owner=OWNER, input_file_id=file_id, endpoint=CHAT, metadata={"a": "b"})
    batches, jobs, files = await service.batches(), await service.jobs(), await service.files()
    batch = (await batches.CreateBatch(request)).batch
    assert (batch.status, batch.completion_window, batch.owner) == ("validating", "24h", OWNER)
    assert batch.expires_at_ms - batch.created_at_ms == 86_400_000
    for _ in lines:
        claimed = await claim_one(jobs)
        assert claimed.owner == OWNER
        await jobs.SettleJob(answered(claimed.claim, claimed.call.http.body))
    done = await until(service, batch.batch_id, "completed")
    assert (done.total, done.completed, done.failed, dict(done.metadata)) == (3, 3, 0, {"a": "b"})
    read = files.ReadFile(jobs_pb2.ReadFileRequest(tenant="acme", file_id=done.output_file_id))
    output = b"".join([part.data async for part in read])
    assert [json.loads(line)["response"]["body"]["n"] for line in output.splitlines()] == [0, 1, 2]
    listed = await batches.ListBatches(jobs_pb2.ListBatchesRequest(tenant="acme"))
    assert list(listed.batches) == [done]


async def test_a_file_that_is_none_fails_and_one_is_cancelled(service: Service) -> None:
    batches = await service.batches()
    bad = jobs_pb2.CreateBatchRequest(owner=OWNER, input_file_id=await uploaded(service, b"{}\nx"), endpoint=CHAT)
    failed = await until(service, (await batches.CreateBatch(bad)).batch.batch_id, "failed")
    assert [(fault.line, fault.code) for fault in failed.errors] == [
        (1, "missing_required_parameter"),
        (2, "invalid_json_line"),
    ]
    line = {"custom_id": "c", "method": "POST", "url": CHAT, "body": {"model": "sums"}}
    good = jobs_pb2.CreateBatchRequest(
        owner=OWNER, input_file_id=await uploaded(service, json.dumps(line).encode()), endpoint=CHAT, completion_window="7d"
    )
    batch_id = (await batches.CreateBatch(good)).batch.batch_id
    await until(service, batch_id, "in_progress")
    await batches.CancelBatch(jobs_pb2.CancelBatchRequest(tenant="acme", batch_id=batch_id))
    cancelled = await until(service, batch_id, "cancelled")
    assert (cancelled.output_file_id, bool(cancelled.error_file_id)) == ("", True)


async def test_what_is_refused(service: Service) -> None:
    stub = await service.batches()

    def asked(**change: object) -> jobs_pb2.CreateBatchRequest:
        good = {"owner": OWNER, "input_file_id": "file-1", "endpoint": CHAT}
        return jobs_pb2.CreateBatchRequest(**{**good, **change})  # type: ignore[arg-type]

    cases = [
        (asked(owner=None), "tenant"),
        (asked(endpoint="/v1/models"), "/v1/embeddings"),
        (asked(completion_window="8d"), "7 days"),
        (asked(input_file_id=""), "input_file_id"),
        (asked(metadata={str(n): "" for n in range(17)}), "17"),
    ]
    for request, named in cases:
        told = await error(stub.CreateBatch(request))
        assert (told.code, named in told.message) == (Code.INVALID_ARGUMENT, True), told.message
    assert (await error(stub.CreateBatch(asked()))).reason == "JOB_FILE_UNKNOWN"
