"""Whatever a gateway or an operator sends to a scheduler: an answer that is the sender's to understand, soon, and the same
scheduler afterwards. Nothing of a payload is in its log, and no key is in etcd that does not belong there.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog.testing
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from penstock.scheduler.v1 import jobs_pb2 as jobs

from runtime.identity import Role
from scheduler.jobs.types import JobLimits
from tests.fuzz.choices import Choices
from tests.fuzz.nonsense import spoilt_everywhere
from tests.registry.garbage import garbage
from tests.scheduler.mesh import DIGEST
from tests.scheduler.whole import METHODS, MODEL, Answer, Request, Whole, request_class, whole_scheduler
from tests.support.postgres import running_postgres
from tests.support.waiting import eventually

END_S = 20.0
CHAT = "/v1/chat/completions"
SECRET = "hush-9f3c"
"""In every payload, and in nothing else."""

_BUGS = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
}
ALSO_GOOD: Mapping[str, grpc.StatusCode] = {
    "FleetService/AwaitCapacity": grpc.StatusCode.DEADLINE_EXCEEDED,
    "FleetService/Reserve": grpc.StatusCode.UNAVAILABLE,
}
"""The one said how long it can wait; the other may name a region where nobody is, for now."""

_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
KEYS = re.compile(
    r"/penstock/presence/here/[0-9a-f]{20}"
    r"|/penstock/control/policy/routing"
    rf"|/penstock/control/[a-z0-9-]{{1,32}}/placements/{_NAME}/[1-9][0-9]{{0,17}}"
    r"|/penstock/control/here/assignments/[0-9a-f]{20}"
)
bytes_of_choices = st.one_of(st.binary(max_size=64), st.binary(min_size=64, max_size=400))
each_input = settings(max_examples=8, deadline=None, database=None, suppress_health_check=list(HealthCheck))

OWNER = {"tenant": "acme", "key_id": "key-1", "allowed_models": ["sums"]}
BODY = json.dumps({"model": "sums", "messages": [{"role": "user", "content": SECRET}]}).encode()
SELECTOR = {"worker_ids": ["w"], "regions": ["here"], "tiers": ["a"], "labels": ["gpu"]}
RULE: Mapping[str, Any] = {
    "name": "a rule",
    "tenants": ["acme"],
    "models": ["d*"],
    "regions": ["here"],
    "strategy": "affinity",
    "weights": {"session": 1.0, "cost": 0.5},
    "shadow_strategy": "cost",
    "deny": [SELECTOR],
    "allow": [],
    "prefer": [SELECTOR],
    "cross_region": True,
    "priority_class": 1,
    "share": 1,
    "flags": {"on": True},
}
GOOD: Mapping[str, Mapping[str, Any]] = {
    "FleetService/WatchFleet": {"region": "here"},
    "FleetService/ListWorkers": {"region": "here"},
    "FleetService/PlaceModel": {
        "placement": {
            "model": "spare",
            "version": "1",
            "digest": DIGEST,
            "copies": 0,
            "max_copies": 1,
            "tier": "a",
            "labels": ["x"],
        }
    },
    "FleetService/ReportDemand": {
        "interval_ms": 1_000,
        "region": "here",
        "models": [{"model": MODEL, "version": "1", "requests": 3, "busy_s": 0.5}],
        "workers": [{"worker_id": "a" * 20, "in_flight": 1, "latency_ms": 3.0}],
    },
    "FleetService/AwaitCapacity": {"model": MODEL, "region": "here", "tenant": "acme", "timeout_us": 3_000_000},
    "FleetService/Reserve": {"model": MODEL, "tenant": "acme", "ttl_ms": 1, "token_sha256": hashlib.sha256(b"t").digest()},
    "FleetService/ReleaseReservation": {"reservation_id": f"{'a' * 20}.{'0' * 32}", "tenant": "acme"},
    "FleetService/Drain": {"worker_id": "nobody", "grace_ms": 1},
    "FleetService/Explain": {"model": MODEL, "tenant": "acme", "prompt": SECRET, "exclude_worker_ids": ["w"]},
    "FleetService/SetRoutingPolicy": {"routing_policy": {"rules": [RULE]}},
    "JobService/SubmitJob": {"owner": OWNER, "call": {"http": {"path": CHAT, "body": BODY}}},
    "JobService/GetJob": {"job_id": "job_" + "0" * 24, "tenant": "acme"},
    "JobService/WatchJob": {"job_id": "job_" + "0" * 24, "tenant": "acme"},
    "JobService/CancelJob": {"job_id": "job_" + "0" * 24, "tenant": "acme"},
    "JobService/ListJobs": {"tenant": "acme", "page_token": f"1.job_{'0' * 24}"},
    "JobService/ListDeadLetters": {"tenant": "acme", "model": "sums"},
    "JobService/ReplayJobs": {"tenant": "acme", "job_ids": ["job_" + "0" * 24]},
    "JobService/ClaimJobs": {"max_jobs": 1},
    "JobService/ExtendClaims": {"claims": ["0" * 32]},
    "JobService/SettleJob": {"claim": "0" * 32, "failure": {"code": 14, "message": SECRET, "retry_after_ms": 1}},
    "FileService/UploadFile": {"tenant": "acme", "name": "in.jsonl", "purpose": "batch", "data": SECRET.encode()},
    "FileService/GetFile": {"file_id": "file-" + "0" * 24, "tenant": "acme"},
    "FileService/ListFiles": {"tenant": "acme", "purpose": "batch"},
    "FileService/DeleteFile": {"file_id": "file-" + "0" * 24, "tenant": "acme"},
    "FileService/ReadFile": {"file_id": "file-" + "0" * 24, "tenant": "acme"},
    "BatchService/CreateBatch": {
        "owner": OWNER,
        "input_file_id": "file-" + "0" * 24,
        "endpoint": CHAT,
        "completion_window": "24h",
        "metadata": {"a": "b"},
    },
    "BatchService/GetBatch": {"batch_id": "batch_" + "0" * 24, "tenant": "acme"},
    "BatchService/ListBatches": {"tenant": "acme"},
    "BatchService/CancelBatch": {"batch_id": "batch_" + "0" * 24, "tenant": "acme"},
}


def good_request(method: str) -> Message:
    return request_class(METHODS[method])(**GOOD.get(method, {}))


def senders_of(method: str) -> Role:
    """Operators may more than gateways, but for what gateways alone may."""
    alone = ("ReportDemand", "AwaitCapacity", "ClaimJobs", "ExtendClaims", "SettleJob")
    return Role.GATEWAY if method.endswith(alone) else Role.OPERATOR


@dataclass(slots=True)
class Here:
    """A scheduler in this thread, and who sends it garbage."""

    runner: asyncio.Runner
    whole: Whole = field(repr=False)
    logged: list[Any] = field(repr=False)

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    async def sends(self, method: str, *requests: Request, role: Role | None = None) -> Answer:
        """One call. It is answered in time, and not with what stands for a bug."""
        answer = await self.whole.call(role or senders_of(method), method, *requests, timeout_s=END_S)
        assert answer.code not in _BUGS - {ALSO_GOOD.get(method)}, (answer.code, answer.error and answer.error.message[:500])
        if answer.error is not None:
            assert answer.error.message
            assert SECRET not in answer.error.message
        return answer

    async def is_well(self) -> None:
        """Each of its rooms answers, its loops go on, its log says of no bug and no payload, and its keys are its own."""
        whole = self.whole
        assert len((await self.sends("FleetService/ListWorkers")).message.workers) == 1
        await self._goes_on()
        assert (await self.sends("FleetService/Explain", good_request("FleetService/Explain"))).message.candidates
        place = (await self.sends("FleetService/AwaitCapacity", good_request("FleetService/AwaitCapacity"))).message
        assert place.worker_id == whole.worker.worker_id
        job = (await self.sends("JobService/SubmitJob", good_request("JobService/SubmitJob"))).message.job
        got = (await self.sends("JobService/GetJob", jobs.GetJobRequest(job_id=job.job_id, tenant="acme"))).message.job
        assert got.model == "sums"
        logged = list(self.logged)
        self.logged.clear()
        for entry in logged:
            assert entry["log_level"] not in ("error", "critical"), entry
            assert SECRET not in str(entry)
        assert [key for key in await whole.keys() if not KEYS.fullmatch(key)] == []

    async def _goes_on(self) -> None:
        """What is wished for is still brought to the worker, and taken from it again."""
        reconciler = self.whole.scheduler.reconciler
        for copies in (1, 0):
            before = reconciler.writes
            wish = {"model": "well", "version": "1", "digest": DIGEST, "copies": copies}
            await self.sends("FleetService/PlaceModel", request_class(METHODS["FleetService/PlaceModel"])(placement=wish))
            await eventually(lambda: reconciler.writes > before)  # noqa: B023 (awaited at once)


@contextmanager
def running(folder: Path, jobs_database: str = "") -> Iterator[Here]:
    with asyncio.Runner() as runner, structlog.testing.capture_logs() as logged:
        limits = JobLimits(longest_wait_ms=200)
        opening = whole_scheduler(folder, places=10_000, jobs_limits=limits, jobs_database=jobs_database)
        whole = runner.run(opening.__aenter__())
        try:
            yield Here(runner, whole, logged)
        finally:
            runner.run(opening.__aexit__(None, None, None))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    with running(tmp_path_factory.mktemp("garbage")) as opened:
        yield opened


@pytest.fixture(scope="module")
def on_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    with running_postgres() as server, running(tmp_path_factory.mktemp("garbage"), server.new_database("garbage")) as opened:
        yield opened


def test_every_rpc_is_sent_garbage() -> None:
    assert GOOD.keys() | {"FleetService/ListPlacements", "FleetService/GetRoutingPolicy"} == METHODS.keys()


@pytest.mark.parametrize("method", GOOD)
def test_each_field_at_its_worst(here: Here, method: str) -> None:
    here.run(spoil(here, method))


@pytest.mark.parametrize("method", [method for method in GOOD if not method.startswith("FleetService")])
def test_each_field_at_its_worst_over_postgres(on_postgres: Here, method: str) -> None:
    """Which takes no NUL, and whole numbers of 64 bits at most."""
    on_postgres.run(spoil(on_postgres, method))


async def spoil(here: Here, method: str) -> None:
    for what, bad in spoilt_everywhere(good_request(method)):
        try:
            await here.sends(method, bad)
        except AssertionError as failed:
            raise AssertionError(what) from failed
    await here.is_well()


@pytest.mark.parametrize("method", GOOD)
@each_input
@given(data=bytes_of_choices)
def test_any_message(here: Here, method: str, data: bytes) -> None:
    choices = Choices(data)
    words = [MODEL, "acme", "here", "1", DIGEST, "affinity", "batch", CHAT, "24h", "job_" + "0" * 24, "../.."]

    async def calls() -> None:
        count = 1 + choices.below(3) if METHODS[method].client_streaming else 1
        await here.sends(method, *(garbage(choices, METHODS[method].input_type, words) for _ in range(count)))

    here.run(calls())


@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_message_is_refused(here: Here, method: str) -> None:
    async def calls() -> None:
        for raw in (b"\x08", b"\xff" * 1000, b"\x0a\xff\xff\xff\xff\x0f"):
            assert (await here.sends(method, raw)).code is grpc.StatusCode.INVALID_ARGUMENT

    here.run(calls())
