"""All 20 RPCs at the edge, over real gRPC: their answers, their codes, and what they refuse."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2
from inference import grpc_service_pb2 as pb

from gateway.kserve.servicer import SERVICE
from gateway.types import FleetNews
from placement.copies.assign import Placement
from placement.types import CopyState
from runtime.errors import Unavailable
from runtime.status import DETAILS_KEY
from tests.gateway.edge import ADMIN, CALLER, ONLY_M, SLOW, GatewayUnderTest, gateway_under_test
from tests.gateway.fakes import FakeLink, copy_of, published, wish_of, worker_of

OK = grpc.StatusCode.OK
Code = grpc.StatusCode


def bearer(secret: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {secret}"),)


@pytest.fixture
async def gateway() -> AsyncIterator[GatewayUnderTest]:
    async with gateway_under_test(worker_of("a", copy_of("m"), copy_of("n")), worker_of("b", copy_of("m"))) as made:
        made.repository.versions += [published("m"), published("n"), published("unloaded")]
        yield made


async def outcome(call: Any) -> tuple[grpc.StatusCode, str]:
    try:
        await call
    except grpc.aio.AioRpcError as failure:
        return failure.code(), failure.details() or ""
    return OK, ""


CALLS: list[tuple[str, Any, grpc.StatusCode]] = [
    ("ServerLive", pb.ServerLiveRequest(), OK),
    ("ServerReady", pb.ServerReadyRequest(), OK),
    ("ServerMetadata", pb.ServerMetadataRequest(), OK),
    ("ModelReady", pb.ModelReadyRequest(name="m"), OK),
    ("ModelReady", pb.ModelReadyRequest(name="x"), OK),
    ("ModelMetadata", pb.ModelMetadataRequest(name="m"), OK),
    ("ModelMetadata", pb.ModelMetadataRequest(name="x"), Code.NOT_FOUND),
    ("ModelMetadata", pb.ModelMetadataRequest(name="m", version="9"), Code.NOT_FOUND),
    ("ModelConfig", pb.ModelConfigRequest(name="m"), OK),
    ("ModelConfig", pb.ModelConfigRequest(name="x"), Code.NOT_FOUND),
    ("ModelInfer", pb.ModelInferRequest(model_name="m"), OK),
    ("ModelInfer", pb.ModelInferRequest(model_name="x"), Code.NOT_FOUND),
    ("ModelStatistics", pb.ModelStatisticsRequest(), OK),
    ("ModelStatistics", pb.ModelStatisticsRequest(name="m"), OK),
    ("ModelStatistics", pb.ModelStatisticsRequest(name="x"), Code.NOT_FOUND),
    ("RepositoryIndex", pb.RepositoryIndexRequest(), OK),
    ("RepositoryIndex", pb.RepositoryIndexRequest(repository_name="r"), Code.UNIMPLEMENTED),
    ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="m"), OK),
    ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="x"), Code.NOT_FOUND),
    ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="unloaded"), OK),
    ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="x"), Code.NOT_FOUND),
    ("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(), OK),
    ("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(name="r"), Code.NOT_FOUND),
    ("SystemSharedMemoryRegister", pb.SystemSharedMemoryRegisterRequest(name="r"), Code.UNIMPLEMENTED),
    ("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(), OK),
    ("CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest(), OK),
    ("CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest(name="r"), Code.NOT_FOUND),
    ("CudaSharedMemoryRegister", pb.CudaSharedMemoryRegisterRequest(name="r"), Code.UNIMPLEMENTED),
    ("CudaSharedMemoryUnregister", pb.CudaSharedMemoryUnregisterRequest(), OK),
    ("TraceSetting", pb.TraceSettingRequest(), OK),
    (
        "TraceSetting",
        pb.TraceSettingRequest(settings={"trace_rate": pb.TraceSettingRequest.SettingValue(value=["1"])}),
        Code.INVALID_ARGUMENT,
    ),
    ("TraceSetting", pb.TraceSettingRequest(model_name="x"), Code.NOT_FOUND),
    ("LogSettings", pb.LogSettingsRequest(), OK),
    (
        "LogSettings",
        pb.LogSettingsRequest(settings={"log_info": pb.LogSettingsRequest.SettingValue(bool_param=False)}),
        Code.INVALID_ARGUMENT,
    ),
]


@pytest.mark.parametrize(("method", "request_", "code"), CALLS, ids=[f"{m}-{c.name}-{i}" for i, (m, _, c) in enumerate(CALLS)])
async def test_every_rpc_answers_with_its_code(
    gateway: GatewayUnderTest, method: str, request_: Any, code: grpc.StatusCode
) -> None:
    assert (await outcome(getattr(gateway.stub, method)(request_, metadata=bearer(ADMIN), timeout=10)))[0] is code


def test_the_table_of_calls_names_every_unary_rpc() -> None:
    every = {method.name for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods}
    assert {method for method, _, _ in CALLS} | {"ModelStreamInfer"} == every
    assert len(every) == 20


@pytest.mark.parametrize("method", sorted({m for m, _, _ in CALLS} - {"ServerLive", "ServerReady"}))
async def test_all_but_liveness_needs_a_key(gateway: GatewayUnderTest, method: str) -> None:
    request = next(request for name, request, _ in CALLS if name == method)
    assert (await outcome(getattr(gateway.stub, method)(request, timeout=10)))[0] is Code.UNAUTHENTICATED
    refused = await outcome(getattr(gateway.stub, method)(request, metadata=bearer("sk-wrong"), timeout=10))
    assert refused[0] is Code.UNAUTHENTICATED
    assert "penstock keys create" in refused[1]


async def test_liveness_needs_none(gateway: GatewayUnderTest) -> None:
    assert (await gateway.stub.ServerLive(pb.ServerLiveRequest())).live
    assert (await gateway.stub.ServerReady(pb.ServerReadyRequest())).ready


async def test_readiness_is_strict_about_what_should_be_loaded(gateway: GatewayUnderTest) -> None:
    gateway.tell(worker_of("a", copy_of("m", state=CopyState.LOADING)), wishes=["m"])
    assert not (await gateway.stub.ServerReady(pb.ServerReadyRequest())).ready
    gateway.tell(worker_of("a", copy_of("m")), wishes=["m"])
    assert (await gateway.stub.ServerReady(pb.ServerReadyRequest())).ready


@pytest.mark.parametrize(
    "metadata",
    [
        bearer(CALLER),
        (("authorization", f"bearer {CALLER}"),),
        (("x-api-key", CALLER),),
        (("api-key", CALLER),),
    ],
)
async def test_a_key_comes_in_any_of_the_usual_headers(gateway: GatewayUnderTest, metadata: Any) -> None:
    assert (await gateway.raw()(pb.ModelInferRequest(model_name="m").SerializeToString(), metadata=metadata)) != b""


async def test_payload_and_answer_pass_through_untouched(gateway: GatewayUnderTest) -> None:
    request = pb.ModelInferRequest(model_name="m", raw_input_contents=[bytes(range(256))]).SerializeToString()
    payload = request + b"\xf8\x07\x01"  # a field that nobody here knows
    assert await gateway.raw()(payload, metadata=bearer(CALLER)) == payload


async def test_without_authentication_everybody_may(gateway: GatewayUnderTest) -> None:
    async with gateway_under_test(worker_of("a", copy_of("m")), auth=False) as opened:
        request = pb.ModelInferRequest(model_name="m").SerializeToString()
        assert await opened.raw()(request) == request


async def test_a_key_for_one_model_gets_no_other(gateway: GatewayUnderTest) -> None:
    infer = gateway.stub.ModelInfer
    assert (await outcome(infer(pb.ModelInferRequest(model_name="n"), metadata=bearer(ONLY_M))))[0] is Code.PERMISSION_DENIED
    metadata = gateway.stub.ModelMetadata
    assert (await outcome(metadata(pb.ModelMetadataRequest(name="n"), metadata=bearer(ONLY_M))))[0] is Code.PERMISSION_DENIED
    index = await gateway.stub.RepositoryIndex(pb.RepositoryIndexRequest(), metadata=bearer(ONLY_M))
    assert {entry.name for entry in index.models} == {"m"}
    statistics = await gateway.stub.ModelStatistics(pb.ModelStatisticsRequest(), metadata=bearer(ONLY_M))
    assert {one.name for one in statistics.model_stats} == {"m"}


async def test_an_empty_bucket_says_how_long_to_wait(gateway: GatewayUnderTest) -> None:
    codes = []
    for _ in range(3):
        call = gateway.stub.ModelInfer(pb.ModelInferRequest(model_name="m"), metadata=bearer(SLOW))
        codes.append((await outcome(call))[0])
    assert codes == [OK, OK, Code.RESOURCE_EXHAUSTED]
    trailers = dict(await call.trailing_metadata())
    details = status_pb2.Status.FromString(trailers[DETAILS_KEY]).details
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in details)
    assert 90 < retry.retry_delay.ToMilliseconds() / 1000 <= 100


@pytest.mark.parametrize("method", ["RepositoryModelLoad", "RepositoryModelUnload"])
async def test_only_an_admin_loads_and_unloads(gateway: GatewayUnderTest, method: str) -> None:
    request = getattr(pb, f"{method}Request")(model_name="m")
    assert (await outcome(getattr(gateway.stub, method)(request, metadata=bearer(CALLER))))[0] is Code.PERMISSION_DENIED
    assert gateway.repository.placed == []


async def test_the_request_id_goes_in_and_out(gateway: GatewayUnderTest) -> None:
    call = gateway.stub.ModelInfer(
        pb.ModelInferRequest(model_name="m"), metadata=(*bearer(CALLER), ("x-request-id", "mine"), ("traceparent", "00-1-2-01"))
    )
    await call
    assert dict(await call.initial_metadata())["x-request-id"] == "mine"
    seen = [context for link in gateway.links.values() for context in link.seen]
    assert (seen[0].request_id, seen[0].traceparent, seen[0].tenant) == ("mine", "00-1-2-01", "t")


async def test_a_failed_request_is_given_an_id_to_ask_by(gateway: GatewayUnderTest) -> None:
    call = gateway.stub.ModelInfer(pb.ModelInferRequest(model_name="x"), metadata=bearer(CALLER))
    await outcome(call)
    assert dict(await call.initial_metadata())["x-request-id"]


async def test_the_deadline_and_priority_travel_to_the_worker(gateway: GatewayUnderTest) -> None:
    request = pb.ModelInferRequest(model_name="m")
    request.parameters["priority"].uint64_param = 3
    await gateway.stub.ModelInfer(request, metadata=bearer(CALLER), timeout=7)
    seen = next(context for link in gateway.links.values() for context in link.seen)
    assert seen.priority == 3
    assert seen.deadline_s is not None
    assert 5 < seen.deadline_s - asyncio.get_running_loop().time() < 8  # the loop remembers the time of its last turn


async def test_metadata_is_asked_once_for_a_digest_and_names_the_ready_versions(gateway: GatewayUnderTest) -> None:
    for _ in range(3):
        answer = await gateway.stub.ModelMetadata(pb.ModelMetadataRequest(name="m"), metadata=bearer(CALLER))
    assert list(answer.versions) == ["1"]
    assert gateway.worker.asked == 1


async def test_statistics_are_those_of_the_whole_fleet(gateway: GatewayUnderTest) -> None:
    answer = await gateway.stub.ModelStatistics(pb.ModelStatisticsRequest(name="m"), metadata=bearer(CALLER))
    (one,) = answer.model_stats
    assert (one.inference_count, one.execution_count, one.last_inference) == (6, 4, 7)
    assert (one.inference_stats.success.count, one.inference_stats.success.ns) == (6, 600)
    assert [(batch.batch_size, batch.compute_infer.count) for batch in one.batch_stats] == [(2, 2)]


async def test_the_index_shows_what_was_published_and_what_is_loaded(gateway: GatewayUnderTest) -> None:
    gateway.tell(worker_of("a", copy_of("m"), copy_of("n", state=CopyState.FAILED, reason="bad graph")))
    index = await gateway.stub.RepositoryIndex(pb.RepositoryIndexRequest(), metadata=bearer(CALLER))
    assert [(entry.name, entry.version, entry.state, entry.reason) for entry in index.models] == [
        ("m", "1", "READY", ""),
        ("n", "1", "UNAVAILABLE", "bad graph"),
        ("unloaded", "1", "UNAVAILABLE", "unloaded"),
    ]
    ready = await gateway.stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True), metadata=bearer(CALLER))
    assert [entry.name for entry in ready.models] == ["m"]
    gateway.repository.away = True
    index = await gateway.stub.RepositoryIndex(pb.RepositoryIndexRequest(), metadata=bearer(CALLER))
    assert [entry.name for entry in index.models] == ["m", "n"]


async def test_a_load_returns_when_a_copy_is_ready(gateway: GatewayUnderTest) -> None:
    load = gateway.stub.RepositoryModelLoad(
        pb.RepositoryModelLoadRequest(model_name="unloaded"), metadata=bearer(ADMIN), timeout=10
    )
    async with asyncio.timeout(5):
        while not gateway.repository.placed:
            await asyncio.sleep(0.001)
    assert gateway.repository.placed[0].copies == 2
    gateway.tell(worker_of("a", copy_of("unloaded", state=CopyState.LOADING)), wishes=["unloaded"])
    await asyncio.sleep(0.01)
    assert not load.done()
    gateway.tell(worker_of("a", copy_of("unloaded")), wishes=["unloaded"])
    await load


async def test_a_load_that_fails_says_why(gateway: GatewayUnderTest) -> None:
    def fail(wish: Placement) -> None:
        gateway.tell(worker_of("a", copy_of("unloaded", state=CopyState.FAILED, reason="bad graph")), wishes=["unloaded"])

    gateway.repository.done = fail
    load = gateway.stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="unloaded"), metadata=bearer(ADMIN))
    code, details = await outcome(load)
    assert code is Code.FAILED_PRECONDITION
    assert "bad graph" in details


async def test_an_unload_takes_the_wish_back_and_waits_until_it_is_gone(gateway: GatewayUnderTest) -> None:
    gateway.fleet.apply(FleetNews(True, (worker_of("a", copy_of("m")),), placements=(wish_of("m"),)))
    gateway.repository.done = lambda placed: gateway.tell(worker_of("a"))
    await gateway.stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="m"), metadata=bearer(ADMIN), timeout=5)
    assert [(placed.model, placed.copies) for placed in gateway.repository.placed] == [("m", 0)]


async def test_a_load_out_of_time_says_so(gateway: GatewayUnderTest) -> None:
    load = gateway.stub.RepositoryModelLoad(
        pb.RepositoryModelLoadRequest(model_name="unloaded"), metadata=bearer(ADMIN), timeout=0.2
    )
    assert (await outcome(load))[0] is Code.DEADLINE_EXCEEDED


async def test_garbage_is_refused_and_the_server_lives(gateway: GatewayUnderTest) -> None:
    rng, infer = random.Random(5), gateway.raw()
    for _ in range(200):
        code, details = await outcome(infer(rng.randbytes(rng.randrange(1, 300)), metadata=bearer(CALLER)))
        assert code in (Code.INVALID_ARGUMENT, Code.NOT_FOUND), details
        assert "Traceback" not in details
    request = pb.ModelInferRequest(model_name="m").SerializeToString()
    assert await infer(request, metadata=bearer(CALLER)) == request


async def test_garbage_on_the_port_does_not_kill_it(gateway: GatewayUnderTest) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(random.Random(5).randbytes(4096))
    await writer.drain()
    await reader.read()
    writer.close()
    assert (await gateway.stub.ServerLive(pb.ServerLiveRequest())).live


async def test_an_oversized_message_is_refused(gateway: GatewayUnderTest) -> None:
    code, _ = await outcome(gateway.raw()(b"\x3a" + b"x" * 2_000_000, metadata=bearer(CALLER)))
    assert code is Code.RESOURCE_EXHAUSTED


async def test_a_bug_is_answered_opaquely(gateway: GatewayUnderTest) -> None:
    def explode(payload: bytes) -> bytes:
        raise KeyError("sk-secret")

    for link in gateway.links.values():
        link.script = [explode]
    code, details = await outcome(gateway.stub.ModelInfer(pb.ModelInferRequest(model_name="m"), metadata=bearer(CALLER)))
    assert code is Code.INTERNAL
    assert "sk-secret" not in details


class TestStream:
    def open(self, gateway: GatewayUnderTest, *more: tuple[str, str], secret: str = CALLER) -> Any:
        return gateway.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer", None, pb.ModelStreamInferResponse.FromString)(
            metadata=(*bearer(secret), *more), timeout=10
        )

    async def test_an_error_leaves_the_stream_open(self) -> None:
        async with gateway_under_test(worker_of("a", copy_of("m")), links={"a": FakeLink("127.0.0.1:1", [_answer])}) as gateway:
            stream = self.open(gateway)
            for model in ("x", "m", "x", "m"):
                await stream.write(pb.ModelInferRequest(model_name=model, id=model).SerializeToString())
            await stream.write(b"\xff\xff\xff")
            await stream.done_writing()
            answers = [answer async for answer in stream]
            errors = [answer.error_message for answer in answers if answer.error_message]
            assert errors[:2] == ["Request for unknown model: 'x' is not found"] * 2
            assert "ModelInferRequest" in errors[2]
            assert [answer.infer_response.id for answer in answers if answer.error_message] == ["x", "x", ""]
            assert await stream.code() is OK

    async def test_errors_become_a_status_where_that_was_asked_for(self, gateway: GatewayUnderTest) -> None:
        stream = self.open(gateway, ("triton_grpc_error", "true"))
        await stream.write(pb.ModelInferRequest(model_name="x").SerializeToString())
        assert await outcome(_drain(stream)) == (Code.NOT_FOUND, "Request for unknown model: 'x' is not found")

    async def test_it_needs_a_key(self, gateway: GatewayUnderTest) -> None:
        assert (await outcome(_drain(self.open(gateway, secret="sk-wrong"))))[0] is Code.UNAUTHENTICATED

    async def test_each_request_costs_and_a_refused_one_does_not_end_the_stream(self) -> None:
        async with gateway_under_test(worker_of("a", copy_of("m")), links={"a": FakeLink("127.0.0.1:1", [_answer])}) as gateway:
            stream = self.open(gateway, secret=SLOW)
            for _ in range(3):
                await stream.write(pb.ModelInferRequest(model_name="m").SerializeToString())
            await stream.done_writing()
            answers = [answer async for answer in stream]
            assert len([answer for answer in answers if "times a second" in answer.error_message]) == 1

    async def test_requests_run_at_once_and_are_answered_in_order(self) -> None:
        gate = asyncio.Event()
        links = {"a": FakeLink("127.0.0.1:1", [_answer], gate=gate), "b": FakeLink("127.0.0.1:1", [_answer])}
        workers = (worker_of("a", copy_of("m")), worker_of("b", copy_of("n")))
        async with gateway_under_test(*workers, links=links) as gateway:
            stream = self.open(gateway)
            for model in ("m", "n"):
                await stream.write(pb.ModelInferRequest(model_name=model, id=model).SerializeToString())
            await stream.done_writing()
            async with asyncio.timeout(5):
                while not links["b"].calls:
                    await asyncio.sleep(0.001)
            gate.set()
            assert [answer.infer_response.id async for answer in stream] == ["m", "m", "m", "n", "n", "n"]

    async def test_a_client_that_goes_away_cancels_its_requests(self) -> None:
        links = {"a": FakeLink("127.0.0.1:1", gate=asyncio.Event())}
        async with gateway_under_test(worker_of("a", copy_of("m")), links=links) as gateway:
            stream = self.open(gateway)
            await stream.write(pb.ModelInferRequest(model_name="m").SerializeToString())
            async with asyncio.timeout(5):
                while not links["a"].in_flight:
                    await asyncio.sleep(0.001)
                stream.cancel()
                while links["a"].in_flight:
                    await asyncio.sleep(0.001)

    async def test_a_worker_that_fails_midway_is_told_of(self) -> None:
        links = {"a": FakeLink("127.0.0.1:1", [_answer], fails_after=1)}
        async with gateway_under_test(worker_of("a", copy_of("m")), links=links) as gateway:
            stream = self.open(gateway)
            await stream.write(pb.ModelInferRequest(model_name="m", id="1").SerializeToString())
            await stream.done_writing()
            answers = [answer async for answer in stream]
            assert [bool(answer.error_message) for answer in answers] == [False, True]


def _answer(payload: bytes) -> bytes:
    """A ModelStreamInferResponse; the digit that the link puts after it goes into an unknown field's value."""
    request = pb.ModelInferRequest.FromString(payload)
    answer = pb.ModelStreamInferResponse(infer_response=pb.ModelInferResponse(id=request.id))
    return answer.SerializeToString() + b"\x78"  # field 15, a varint: the digit


async def _drain(stream: Any) -> None:
    async for _ in stream:
        pass


async def test_what_is_refused_and_retried_is_counted(gateway: GatewayUnderTest) -> None:
    await outcome(gateway.stub.ModelInfer(pb.ModelInferRequest(model_name="m")))
    await outcome(gateway.stub.ModelInfer(pb.ModelInferRequest(model_name="\x00weird"), metadata=bearer(CALLER)))
    for link in gateway.links.values():
        link.script = [Unavailable("no")]
    await outcome(gateway.stub.ModelInfer(pb.ModelInferRequest(model_name="m"), metadata=bearer(CALLER)))
    count = gateway.registry.get_sample_value
    assert count("penstock_gateway_admission_refusals_total", {"reason": "KEY_MISSING"}) == 1
    assert count("penstock_gateway_requests_total", {"method": "ModelInfer", "model": "other", "code": "NOT_FOUND"}) == 1
    assert count("penstock_gateway_retries_total", {"reason": "UNAVAILABLE", "granted": "yes"}) == 1
