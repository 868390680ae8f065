"""The cache behind a real port: what callers are told, what limits and statistics see, and who gets nothing of it."""

from __future__ import annotations

from typing import Any

import grpc.aio
from inference import grpc_service_pb2 as pb

from tests.gateway.cache.asked import repeatable, tensors
from tests.gateway.edge import CALLER, STRANGER, GatewayUnderTest, gateway_under_test
from tests.gateway.fakes import copy_of, worker_of


def bearer(secret: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {secret}"),)


async def infer(gateway: GatewayUnderTest, payload: bytes, *more: tuple[str, str], key: str = CALLER) -> tuple[bytes, Any]:
    call = gateway.raw()(payload, metadata=(*bearer(key), *more))
    answer = await call
    return answer, dict(await call.initial_metadata())


async def test_callers_are_told_whether_an_answer_was_given_before() -> None:
    async with gateway_under_test(worker_of("w", repeatable()), cached=True) as gateway:
        _, first = await infer(gateway, tensors(request_id="1"))
        answer, second = await infer(gateway, tensors(request_id="2"))
        _, named = await infer(gateway, tensors(), ("x-request-id", "mine"))
        assert [told["x-penstock-cache"] for told in (first, second, named)] == ["miss", "hit", "hit"]
        assert named["x-request-id"] == "mine"
        assert pb.ModelInferResponse.FromString(answer).id == "2"
        assert gateway.links["w"].calls == 1


async def test_another_tenant_learns_nothing() -> None:
    async with gateway_under_test(worker_of("w", repeatable()), cached=True) as gateway:
        await infer(gateway, tensors())
        _, told = await infer(gateway, tensors(), key=STRANGER)
        assert told["x-penstock-cache"] == "miss"
        assert gateway.links["w"].calls == 2


async def test_models_that_say_nothing_of_it_are_asked_each_time() -> None:
    async with gateway_under_test(worker_of("w", copy_of("m")), cached=True) as gateway:
        told = [(await infer(gateway, tensors(), ("x-request-id", "mine")))[1] for _ in range(2)]
        assert all("x-penstock-cache" not in each for each in told)
        assert gateway.links["w"].calls == 2


async def test_a_gateway_without_a_cache_asks_each_time() -> None:
    async with gateway_under_test(worker_of("w", repeatable())) as gateway:
        told = [(await infer(gateway, tensors()))[1] for _ in range(2)]
        assert all("x-penstock-cache" not in each for each in told)
        assert gateway.links["w"].calls == 2


async def test_what_is_given_again_counts_as_answered() -> None:
    async with gateway_under_test(worker_of("w", repeatable()), cached=True) as gateway:
        for _ in range(3):
            await infer(gateway, tensors())
        labels = {"method": "ModelInfer", "model": "m", "code": "OK"}
        assert gateway.registry.get_sample_value("penstock_gateway_requests_total", labels) == 3


async def test_statistics_add_what_was_found_here_to_what_workers_tell() -> None:
    async with gateway_under_test(worker_of("w", repeatable(), repeatable("n")), cached=True) as gateway:
        for _ in range(3):
            await infer(gateway, tensors())
        request = pb.ModelStatisticsRequest()
        answer = await gateway.stub.ModelStatistics(request, metadata=bearer(CALLER))
        told = {one.name: one for one in answer.model_stats}
        stats = told["m"].inference_stats
        assert (stats.cache_hit.count, stats.cache_miss.count, stats.success.count) == (2, 1, 3 + 2)
        assert (told["m"].inference_count, told["m"].execution_count) == (3 + 2, 2)
        assert stats.cache_hit.ns > 0 < stats.cache_miss.ns
        assert told["n"].inference_stats.cache_miss.count == 0


async def test_a_request_is_let_in_before_it_is_looked_for() -> None:
    async with gateway_under_test(worker_of("w", repeatable()), cached=True) as gateway:
        await infer(gateway, tensors())
        try:
            await infer(gateway, tensors(), key="sk-pn-nobody")
        except grpc.aio.AioRpcError as refused:
            assert refused.code() is grpc.StatusCode.UNAUTHENTICATED
        else:
            raise AssertionError("an unknown key was answered")
