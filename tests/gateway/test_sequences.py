"""Sequences and regions as KServe clients say them, over real gRPC; and the beginnings of prompts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
from inference import grpc_service_pb2 as pb

from gateway.kserve.sequences import request_of
from gateway.kserve.servicer import SERVICE
from gateway.openai.text import prefix_of
from gateway.openai.types import Turn
from gateway.types import FleetNews
from gateway.wire import RequestHead
from placement.types import Request
from runtime.ids import ModelName, ModelVersion
from tests.gateway.edge import CALLER, STRANGER, GatewayUnderTest, gateway_under_test
from tests.gateway.fakes import LOCAL, copy_of, wish_of, worker_of

MODEL, VERSION = ModelName("m"), ModelVersion("1")


@pytest.fixture
async def gateway() -> AsyncIterator[GatewayUnderTest]:
    workers = [worker_of(each, copy_of("m")) for each in "abcd"]
    far = worker_of("z", copy_of("m"), region="asia")
    async with gateway_under_test(*workers, far, header_allowed=True) as made:
        yield made


def part(sequence: int | str, *, end: bool = False) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="m")
    kind = "int64_param" if isinstance(sequence, int) else "string_param"
    setattr(request.parameters["sequence_id"], kind, sequence)
    request.parameters["sequence_end"].bool_param = end
    return request


async def send(gateway: GatewayUnderTest, request: pb.ModelInferRequest, secret: str = CALLER, **headers: str) -> str:
    """Returns which worker answered."""
    before = {who: link.calls for who, link in gateway.links.items()}
    metadata = (("authorization", f"Bearer {secret}"), *((name.replace("_", "-"), said) for name, said in headers.items()))
    await gateway.raw()(request.SerializeToString(), metadata=metadata, timeout=5)
    return next(who for who, link in gateway.links.items() if link.calls > before.get(who, 0))


async def test_a_sequence_stays_at_its_worker_and_is_forgotten_at_its_end(gateway: GatewayUnderTest) -> None:
    first = await send(gateway, part(7))
    assert {await send(gateway, part(7)) for _ in range(8)} == {first}
    sessions = gateway.fleet.state.sessions
    assert len(sessions) == 1
    assert await send(gateway, part(7, end=True)) == first
    assert len(sessions) == 0


async def test_it_stays_there_when_others_join_and_moves_when_its_worker_leaves(gateway: GatewayUnderTest) -> None:
    first = await send(gateway, part("talk"))
    joined = [worker_of(each, copy_of("m")) for each in "abcdefgh"]
    gateway.tell(*joined)
    assert {await send(gateway, part("talk")) for _ in range(8)} == {first}
    gateway.tell(*(worker for worker in joined if worker.worker_id != first))
    assert first not in {await send(gateway, part("talk")) for _ in range(4)}


async def test_sequences_of_two_tenants_are_two(gateway: GatewayUnderTest) -> None:
    await send(gateway, part(7))
    await send(gateway, part(7), STRANGER)
    assert len(gateway.fleet.state.sessions) == 2


async def test_a_stream_keeps_its_sequences_too(gateway: GatewayUnderTest) -> None:
    infer: Any = gateway.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer", None, None)
    call = infer(
        iter([part(7).SerializeToString(), part(7).SerializeToString(), part(7, end=True).SerializeToString()]),
        metadata=(("authorization", f"Bearer {CALLER}"),),
    )
    assert len([answer async for answer in call]) == 9
    assert sorted(link.calls for link in gateway.links.values()) == [0, 0, 0, 0, 3]
    assert len(gateway.fleet.state.sessions) == 0


def test_requests_of_no_sequence_are_free() -> None:
    assert request_of(RequestHead("m"), VERSION, LOCAL, "t") == Request(MODEL, VERSION, LOCAL)


async def test_a_request_may_say_its_region(gateway: GatewayUnderTest) -> None:
    plain = pb.ModelInferRequest(model_name="m")
    assert await send(gateway, plain, x_penstock_region="asia") == "z"
    assert "z" not in {await send(gateway, plain) for _ in range(8)}
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await send(gateway, plain, x_penstock_region="atlantis")
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "asia, local" in (refused.value.details() or "")


async def test_a_model_that_is_loaded_on_demand_does_not_make_the_gateway_unready(gateway: GatewayUnderTest) -> None:
    async def is_ready() -> bool:
        return bool((await gateway.stub.ServerReady(pb.ServerReadyRequest())).ready)

    gateway.fleet.apply(FleetNews(True, (), placements=(wish_of("m", copies=0, max_copies=3),)))
    assert await is_ready()
    gateway.fleet.apply(FleetNews(True, (), placements=(wish_of("m", copies=1, max_copies=3),)))
    assert not await is_ready()


def chat(*contents: str) -> tuple[Turn, ...]:
    return tuple(Turn("user", content) for content in contents)


def test_conversations_that_begin_alike_share_their_first_blocks() -> None:
    shared = "once upon a time " * 60
    one, other = prefix_of(chat(shared, "a" * 600), "m", "t"), prefix_of(chat(shared, "b" * 600), "m", "t")
    assert len(one) == len(other) >= 6
    common = sum(mine == theirs for mine, theirs in zip(one, other, strict=True))
    assert 3 <= common < len(one)
    assert prefix_of(shared, "m", "t")
    assert prefix_of(chat("short"), "m", "t") == ()


def test_what_begins_alike_is_another_tenants_or_models_own_affair() -> None:
    asked = chat("x" * 2_000)
    assert not set(prefix_of(asked, "m", "t")) & set(prefix_of(asked, "m", "u"))
    assert not set(prefix_of(asked, "m", "t")) & set(prefix_of(asked, "n", "t"))


def test_only_the_beginning_is_looked_at() -> None:
    long = [f"turn {number} " * 50 for number in range(2_000)]
    assert prefix_of(chat(*long), "m", "t") == prefix_of(chat(*long[:100]), "m", "t")
    assert len(prefix_of("ß" * 1_000_000, "m", "t")) <= 32
