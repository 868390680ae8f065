"""What is just within a bound is taken, and what is just beyond it refused with what is allowed; and nothing of what is refused
stays behind.
"""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from google.protobuf.message import Message
from inference import grpc_service_pb2 as kserve
from penstock.scheduler.v1 import jobs_pb2

from runtime.identity import Role
from scheduler.jobs.types import MAX_CALL_BYTES, JobLimits
from tests.fuzz.choices import Choices
from tests.fuzz.nonsense import spoilt_everywhere
from tests.registry.garbage import garbage
from tests.scheduler.mesh import DIGEST
from tests.scheduler.test_garbage_in import GOOD, good_request, senders_of
from tests.scheduler.whole import METHODS, MODEL, Answer, Whole, request_class, whole_scheduler

CHAT = "/v1/chat/completions"
FILE_BYTES = 3 * 1024 * 1024
LIMITS = JobLimits(longest_wait_ms=100, file_bytes=FILE_BYTES)
on_the_modules_loop = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Whole]:
    async with whole_scheduler(tmp_path_factory.mktemp("bounds"), jobs_limits=LIMITS, places=10_000) as running:
        yield running


async def sent(whole: Whole, method: str, request: Message) -> Answer:
    return await whole.call(senders_of(method), method, request)


def changed(method: str, **fields: Any) -> Message:
    return request_class(METHODS[method])(**{**GOOD[method], **fields})


def placement(**fields: Any) -> Mapping[str, Any]:
    return {"placement": {**GOOD["FleetService/PlaceModel"]["placement"], **fields}}


def job(body: bytes, **more: Any) -> Mapping[str, Any]:
    return {"owner": {"tenant": "acme"}, "call": {"http": {"path": CHAT, "body": body}}, **more}


def padded(size: int) -> bytes:
    """JSON of so many bytes."""
    return b'{"model": "sums", "x": "' + b"y" * (size - 26) + b'"}'


BOUNDS: tuple[tuple[str, Mapping[str, Any], Mapping[str, Any]], ...] = (
    ("FleetService/PlaceModel", placement(model="m" * 128), placement(model="m" * 129)),
    ("FleetService/PlaceModel", placement(version="9" * 18), placement(version="9" * 19)),
    ("FleetService/PlaceModel", placement(region="r" * 32), placement(region="r" * 33)),
    ("FleetService/PlaceModel", placement(copies=0, max_copies=10_000), placement(copies=0, max_copies=10_001)),
    ("FleetService/PlaceModel", placement(labels=[f"l{n}" for n in range(32)]), placement(labels=[f"l{n}" for n in range(33)])),
    ("FleetService/PlaceModel", placement(memory_bytes=1 << 50), placement(memory_bytes=(1 << 50) + 1)),
    ("FleetService/PlaceModel", placement(idle_s=604_800), placement(idle_s=604_801)),
    ("FleetService/ReportDemand", {"interval_ms": 600_000}, {"interval_ms": 600_001}),
    ("FleetService/ReportDemand", {"workers": [{"worker_id": "w"}] * 20_000}, {"workers": [{"worker_id": "w"}] * 20_001}),
    ("FleetService/AwaitCapacity", {"tenant": "t" * 256}, {"tenant": "t" * 257}),
    ("FleetService/AwaitCapacity", {"exclude_worker_ids": ["w"] * 256}, {"exclude_worker_ids": ["w"] * 257}),
    ("FleetService/AwaitCapacity", {"exclude_worker_ids": ["w" * 256]}, {"exclude_worker_ids": ["w" * 257]}),
    ("FleetService/Reserve", {"ttl_ms": 600_000}, {"ttl_ms": 600_001}),
    ("FleetService/Reserve", {"tenant": "t" * 256}, {"tenant": "t" * 257}),
    ("FleetService/Reserve", {"token_sha256": bytes(32)}, {"token_sha256": bytes(33)}),
    ("FleetService/Reserve", {"session_key": "s" * 65_536}, {"session_key": "s" * 65_537}),
    ("FleetService/Explain", {"prompt": "p" * 65_536}, {"prompt": "p" * 65_537}),
    ("FleetService/Explain", {"tenant": "t" * 256}, {"tenant": "t" * 257}),
    ("FleetService/SetRoutingPolicy", {"routing_policy": {"rules": [{}] * 256}}, {"routing_policy": {"rules": [{}] * 257}}),
    ("JobService/SubmitJob", job(padded(MAX_CALL_BYTES)), job(padded(MAX_CALL_BYTES + 1))),
    ("JobService/SubmitJob", job(b'{"model": "%b"}' % (b"m" * 256)), job(b'{"model": "%b"}' % (b"m" * 257))),
    ("JobService/SubmitJob", job(padded(99), idempotency_key="k" * 128), job(padded(99), idempotency_key="k" * 129)),
    ("JobService/SubmitJob", job(padded(99), priority=1_000), job(padded(99), priority=1_001)),
    ("JobService/SubmitJob", job(padded(99), max_attempts=100), job(padded(99), max_attempts=101)),
    ("JobService/SubmitJob", job(padded(99), keep_s=30 * 86_400), job(padded(99), keep_s=30 * 86_400 + 1)),
    ("JobService/SubmitJob", {"owner": {"tenant": "t" * 63}}, {"owner": {"tenant": "t" * 64}}),
    ("JobService/ReplayJobs", {"job_ids": ["j"] * 1_000}, {"job_ids": ["j"] * 1_001}),
    ("JobService/ExtendClaims", {"claims": ["c"] * 1_000}, {"claims": ["c"] * 1_001}),
    ("FileService/UploadFile", {"data": bytes(FILE_BYTES)}, {"data": bytes(FILE_BYTES + 1)}),
    ("FileService/UploadFile", {"tenant": "t" * 63}, {"tenant": "t" * 64}),
)


@on_the_modules_loop
@pytest.mark.parametrize(("method", "within", "beyond"), BOUNDS, ids=[f"{each[0]} {n}" for n, each in enumerate(BOUNDS)])
async def test_within_and_beyond(whole: Whole, method: str, within: Mapping[str, Any], beyond: Mapping[str, Any]) -> None:
    taken = await sent(whole, method, changed(method, **within))
    assert taken.code is grpc.StatusCode.OK, taken
    refused = await sent(whole, method, changed(method, **beyond))
    assert refused.code is grpc.StatusCode.INVALID_ARGUMENT
    assert refused.error is not None
    assert refused.error.message
    if method == "FleetService/Reserve":
        asked = request_class(METHODS["FleetService/ReleaseReservation"])(reservation_id=taken.message.reservation_id)
        assert (await sent(whole, "FleetService/ReleaseReservation", asked)).code is grpc.StatusCode.OK


DEEP = b'{"model": "sums", "x": ' + b"[" * 900 + b"]" * 900 + b"}"
BODIES: Mapping[str, tuple[bytes, bool]] = {
    "deep": (DEEP, True),
    "too deep": (b'{"model": "sums", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", False),
    "objects too deep": (b'{"x":' * 50_000 + b"1" + b"}" * 50_000, False),
    "a number of 5,000 digits": (b'{"model": "sums", "x": ' + b"9" * 5_000 + b"}", False),
    "half a surrogate pair for a model": (b'{"model": "\\ud800"}', False),
    "a NUL for a model": (b'{"model": "\\u0000"}', False),
    "a path for a model": (b'{"model": "../../control/policy/routing"}', True),
    "no UTF-8": (b'{"model": "\xff"}', False),
    "the same key a thousand times": (b"{" + b'"model": "x", ' * 1_000 + b'"model": "sums"}', True),
    "a list for a model": (b'{"model": ["sums"]}', False),
    "streamed": (b'{"model": "sums", "stream": true}', False),
    "nothing": (b"", False),
}


@on_the_modules_loop
@pytest.mark.parametrize("what", BODIES)
async def test_a_jobs_body(whole: Whole, what: str) -> None:
    body, is_taken = BODIES[what]
    answer = await sent(whole, "JobService/SubmitJob", changed("JobService/SubmitJob", **job(body)))
    assert answer.code is (grpc.StatusCode.OK if is_taken else grpc.StatusCode.INVALID_ARGUMENT), answer


@on_the_modules_loop
@pytest.mark.parametrize("infer", [b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x0f", b"", b"\x0a\x02\xc3\x28"])
async def test_a_jobs_tensors_that_are_none(whole: Whole, infer: bytes) -> None:
    asked = jobs_pb2.SubmitJobRequest(owner=jobs_pb2.JobOwner(tenant="acme"), call=jobs_pb2.JobCall(infer=infer))
    assert (await sent(whole, "JobService/SubmitJob", asked)).code is grpc.StatusCode.INVALID_ARGUMENT
    good = kserve.ModelInferRequest(model_name="digits").SerializeToString()
    asked.call.infer = good + b"\x3a\x04abcd"
    assert (await sent(whole, "JobService/SubmitJob", asked)).code is grpc.StatusCode.OK


def line(number: int, text: str = "?") -> bytes:
    body = {"model": "sums", "messages": [text]}
    return json.dumps({"custom_id": f"l{number}", "method": "POST", "url": CHAT, "body": body}).encode()


FILES: Mapping[str, tuple[bytes, str]] = {
    "nothing but line ends": (b"\n" * 1_000_000, "empty_file"),
    "spaces": (b" \r\n" * 300_000, "empty_file"),
    "a million lines of one letter": (b"1\n" * 1_000_000, "invalid_json_line"),
    "fifty thousand lines and one": (b'{"custom_id":"x"}\n' * 50_001, "invalid_method"),
    "the same id twice": (line(1) + b"\n" + line(1), "duplicate_custom_id"),
    "half a surrogate pair": (line(1).replace(b'"l1"', b'"\\ud800"'), "invalid_custom_id"),
    "too deep": (line(1).replace(b'"?"', b"[" * 100_000 + b"]" * 100_000), "invalid_json_line"),
    "no line ends": (b"x" * (2 * 1024 * 1024), "invalid_json_line"),
    "noise": (bytes(range(256)) * 4_000, "invalid_json_line"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(100_000), "invalid_json_line"),
}


@on_the_modules_loop
@pytest.mark.parametrize("what", FILES)
async def test_a_batch_of_nonsense_fails_and_says_where(whole: Whole, what: str) -> None:
    content, code = FILES[what]
    batch = await ended(whole, content)
    assert batch.status == "failed"
    assert batch.errors[0].code == code
    assert batch.total == 0
    listed = await whole.made("JobService/ListJobs", tenant="acme", batch_id=batch.batch_id)
    assert list(listed.jobs) == []


@on_the_modules_loop
async def test_metadata_of_every_kind(whole: Whole) -> None:
    """With a file that is there, so that what is not refused is kept."""
    file_id = await uploaded(whole, line(1))
    asked = changed("BatchService/CreateBatch", input_file_id=file_id)
    for what, bad in spoilt_everywhere(asked):
        answer = await sent(whole, "BatchService/CreateBatch", bad)
        expected = (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
        assert answer.code in (*expected, grpc.StatusCode.RESOURCE_EXHAUSTED), (what, answer)


async def uploaded(whole: Whole, content: bytes) -> str:
    first = jobs_pb2.UploadFileRequest(tenant="acme", name="in.jsonl", purpose="batch", data=content)
    return str((await whole.call(Role.GATEWAY, "FileService/UploadFile", first)).message.file.file_id)


async def ended(whole: Whole, content: bytes) -> jobs_pb2.Batch:
    asked: dict[str, Any] = {"owner": {"tenant": "acme"}, "endpoint": CHAT, "input_file_id": await uploaded(whole, content)}
    batch_id = (await whole.made("BatchService/CreateBatch", **asked)).batch.batch_id
    async with asyncio.timeout(30):
        while True:
            batch: jobs_pb2.Batch = (await whole.made("BatchService/GetBatch", tenant="acme", batch_id=batch_id)).batch
            if batch.status not in ("validating", "in_progress"):
                return batch
            await asyncio.sleep(0.02)


@on_the_modules_loop
async def test_two_thousand_calls_of_nonsense_leave_nothing_behind(whole: Whole) -> None:
    """Each with other names, of half a megabyte: a cache by name would have a gigabyte of them."""
    methods = [method for method in GOOD if method not in ("FleetService/AwaitCapacity", "JobService/SubmitJob")]
    long = "n" * 500_000

    async def calls(begin: int, end: int) -> None:
        for number in range(begin, end):
            method = methods[number % len(methods)]
            choices, words = Choices(number.to_bytes(4, "big") * 40), [MODEL, DIGEST, "1", "acme", f"{number}"]
            await sent(whole, method, garbage(choices, METHODS[method].input_type, words))
            by_name: Any = good_request(
                ("FleetService/Reserve", "FleetService/AwaitCapacity", "FleetService/Explain")[number % 3]
            )
            by_name.tenant, by_name.session_key = f"{number}{long}", f"{number}{long}"
            await sent(whole, f"FleetService/{by_name.DESCRIPTOR.name.removesuffix('Request')}", by_name)

    await calls(0, 100)
    before = resident_bytes()
    await calls(100, 1_100)
    assert resident_bytes() - before < 256 * 1024 * 1024


def resident_bytes() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
