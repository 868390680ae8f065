"""UsageService as applications meet it: whose requests they see, in what portions, and what they are told otherwise."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from penstock.gateway.v1 import usage_pb2 as pb

from gateway.request_log.store import LogStore
from gateway.request_log.types import Question
from runtime.status import error_of
from tests.gateway.request_log.ground import NOON_MS, TRACE_ID, entry
from tests.gateway.request_log.service import ACME, ACME_TOO, QUICK, STRANGER, Service, usage_service


async def opened(service: Service) -> LogStore:
    async with asyncio.timeout(30):
        while service.room.store is None:
            await asyncio.sleep(0.01)
    return service.room.store


async def listed(service: Service, secret: str = ACME, **asked: object) -> pb.ListRequestsResponse:
    request = pb.ListRequestsRequest(**asked)  # type: ignore[arg-type]
    answer: pb.ListRequestsResponse = await service.stub.ListRequests(request, metadata=service.key(secret))
    return answer


async def test_a_tenant_sees_its_own_and_nothing_else(tmp_path: Path) -> None:
    async with usage_service(str(tmp_path / "requests.db")) as service:
        store = await opened(service)
        await store.write([entry(1), entry(2, tenant="u", request_id="theirs"), entry(3, tenant="")])
        for secret in (ACME, ACME_TOO):
            (found,) = (await listed(service, secret, until_ms=NOON_MS + 1)).requests
            assert found.request_id == "r"
        assert (await listed(service, request_id="theirs")).requests == []
        usage = await service.stub.GetUsage(pb.GetUsageRequest(since_ms=1, until_ms=NOON_MS), metadata=service.key(STRANGER))
        assert [(each.requests, each.prompt_tokens) for each in usage.usage] == [(1, 3)]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await listed(service, "sk-pn-nobody")
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_all_of_an_entry_arrives(tmp_path: Path) -> None:
    async with usage_service(str(tmp_path / "requests.db")) as service:
        store = await opened(service)
        written = entry(1, cache="hit", fell_back="first", hedged=True, request_body='{"a":1}', streamed=True, process=3)
        await store.write([written, entry(0, first_answer_ms=None)])
        found, other = (await listed(service, request_id="r")).requests
        assert not other.HasField("first_answer_ms")
        assert (found.ended_at_ms, found.asked_model, found.fell_back_from, found.trace_id) == (NOON_MS, "m", "first", TRACE_ID)
        assert (found.request_body, found.answer_body, found.process, found.first_answer_ms) == ('{"a":1}', "", 3, 1.0)
        assert (await listed(service, until_ms=NOON_MS + 1)).requests[0].request_body == "", "only of a request that is named"


async def test_pages(tmp_path: Path) -> None:
    async with usage_service(str(tmp_path / "requests.db")) as service:
        await (await opened(service)).write([entry(number) for number in range(7)])
        token, seen = "", 0
        for size in (3, 3, 1):
            page = await listed(service, page_size=3, page_token=token, until_ms=NOON_MS + 1)
            assert len(page.requests) == size
            token, seen = page.next_page_token, seen + size
        assert (token, seen) == ("", 7)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"page_size": 1001}, "page_size is 1001"),
        *(
            ({"page_token": token}, "page_token")
            for token in ("x", "1", "1.2.3", "-1.2", "f" * 17 + ".1", "ffffffffffffffff.1")
        ),
        ({"model": "a\x00b"}, "model"),
        ({"request_id": "x" * 300}, "request_id"),
    ],
)
async def test_questions_that_mean_nothing(tmp_path: Path, asked: dict[str, Any], says: str) -> None:
    async with usage_service(str(tmp_path / "requests.db")) as service:
        await opened(service)
        with pytest.raises(grpc.aio.AioRpcError, match=says) as refused:
            await listed(service, **asked)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_times_without_end_are_taken(tmp_path: Path) -> None:
    async with usage_service(str(tmp_path / "requests.db")) as service:
        await (await opened(service)).write([entry()])
        assert (await listed(service, since_ms=2**64 - 1)).requests == []
        assert len((await listed(service, until_ms=2**64 - 1)).requests) == 1
        asked = pb.GetUsageRequest(since_ms=1, until_ms=2**64 - 1)
        assert len((await service.stub.GetUsage(asked, metadata=service.key(ACME))).usage) == 1


async def test_where_no_log_is_kept_both_say_so() -> None:
    async with usage_service("") as service:
        for method, request in (("ListRequests", pb.ListRequestsRequest()), ("GetUsage", pb.GetUsageRequest())):
            with pytest.raises(grpc.aio.AioRpcError, match="--request-log") as refused:
                await getattr(service.stub, method)(request, metadata=service.key(ACME))
            assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert error_of(refused.value).reason == "REQUEST_LOG_OFF"


async def test_asking_and_being_refused_are_logged_themselves(tmp_path: Path) -> None:
    async with usage_service(str(tmp_path / "requests.db"), QUICK) as service:
        await opened(service)
        with pytest.raises(grpc.aio.AioRpcError):
            await listed(service, "sk-pn-nobody")
        await listed(service, ACME)
        async with asyncio.timeout(30):
            while not (found := (await listed(service)).requests):
                await asyncio.sleep(0.02)
        assert (found[-1].method, found[-1].code, found[-1].key_id, found[-1].process) == ("ListRequests", "OK", "k", 3)
        store = await opened(service)
        (refused,) = (await store.page(Question(""))).entries
        assert (refused.code, refused.reason, refused.key_id) == ("UNAUTHENTICATED", "KEY_REFUSED", "")
        assert refused.request_id
