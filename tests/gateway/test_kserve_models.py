"""Whose model it is, what its names mean and what was withdrawn, at the KServe door."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from inference import grpc_service_pb2 as pb

from gateway.kserve.servicer import SERVICE
from placement.types import Copy
from runtime.errors import VersionWithdrawn
from runtime.ids import Digest
from runtime.notices import STABLE, NoticeBoard
from tests.gateway.edge import ADMIN, AUDITOR, CALLER, STRANGER, GatewayUnderTest, gateway_under_test
from tests.gateway.fakes import FakeLink, copy_of, notice_of, published, worker_of
from tests.gateway.test_kserve import OK, Code, bearer, outcome

TWO = Digest("2" * 64)


def second() -> Copy:
    return replace(copy_of("m", "2"), digest=TWO)


@pytest.fixture
def board() -> NoticeBoard:
    board = NoticeBoard()
    board.synced = True
    board.hear_model(notice_of("m", aliases={STABLE: ("1", 0), "canary": ("2", 0)}))
    board.hear_model(notice_of("theirs", "u"))
    return board


@pytest.fixture
async def gateway(board: NoticeBoard) -> AsyncIterator[GatewayUnderTest]:
    async with gateway_under_test(worker_of("a", copy_of("m"), second(), copy_of("theirs")), board=board) as made:
        made.repository.versions += [published("m"), published("m", "2"), published("theirs")]
        yield made


def asked(gateway: GatewayUnderTest) -> list[str]:
    return gateway.links["a"].versions


async def infer(gateway: GatewayUnderTest, model: str = "m", version: str = "", secret: str = CALLER) -> Any:
    return await outcome(
        gateway.raw()(
            pb.ModelInferRequest(model_name=model, model_version=version).SerializeToString(),
            metadata=bearer(secret),
            timeout=10,
        )
    )


async def test_an_alias_is_a_version(gateway: GatewayUnderTest, board: NoticeBoard) -> None:
    for version in ("", STABLE, "canary", "2", "1"):
        assert (await infer(gateway, version=version))[0] is OK
    assert asked(gateway) == ["1", "1", "2", "2", "1"]
    board.hear_model(notice_of("m", aliases={STABLE: ("2", 0)}, generation=2))
    assert (await infer(gateway))[0] is OK
    assert asked(gateway)[-1] == "2"
    assert await infer(gateway, version="canary") == (
        Code.NOT_FOUND,
        "Request for unknown model: 'm' version canary is not found",
    )


async def test_a_withdrawn_version_is_refused_while_its_copies_are_ready(gateway: GatewayUnderTest, board: NoticeBoard) -> None:
    board.hear_model(notice_of("m", aliases={"canary": ("2", 0)}, withdrawn=["2"], digests=[TWO], generation=2))
    for version in ("2", "canary"):
        code, details = await infer(gateway, version=version)
        assert code is Code.NOT_FOUND
        assert "version 2 is not found: it was withdrawn" in details
        ready = await gateway.stub.ModelReady(pb.ModelReadyRequest(name="m", version=version), metadata=bearer(CALLER))
        assert not ready.ready
    assert (await infer(gateway))[0] is OK
    assert asked(gateway) == ["1"]
    metadata = await gateway.stub.ModelMetadata(pb.ModelMetadataRequest(name="m"), metadata=bearer(CALLER))
    assert list(metadata.versions) == ["1"]


async def test_a_worker_that_heard_first_is_believed(gateway: GatewayUnderTest) -> None:
    gateway.links["a"].script = [VersionWithdrawn("withdrawn")]
    assert await infer(gateway, version="2") == (
        Code.NOT_FOUND,
        "Request for unknown model: 'm' version 2 is not found: it was withdrawn; name another",
    )


async def test_another_tenants_model_is_not_to_be_had_and_not_to_be_seen(gateway: GatewayUnderTest) -> None:
    assert (await infer(gateway, "theirs"))[0] is Code.NOT_FOUND
    assert (await infer(gateway, "theirs", secret=STRANGER))[0] is OK
    stub, key = gateway.stub, bearer(ADMIN)
    assert not (await stub.ModelReady(pb.ModelReadyRequest(name="theirs"), metadata=key)).ready
    unknown = (Code.NOT_FOUND, "Request for unknown model: 'theirs' is not found")
    for method, request in (
        ("ModelMetadata", pb.ModelMetadataRequest(name="theirs")),
        ("ModelConfig", pb.ModelConfigRequest(name="theirs")),
        ("ModelStatistics", pb.ModelStatisticsRequest(name="theirs")),
        ("TraceSetting", pb.TraceSettingRequest(model_name="theirs")),
    ):
        assert await outcome(getattr(stub, method)(request, metadata=key)) == unknown
    index = await stub.RepositoryIndex(pb.RepositoryIndexRequest(), metadata=key)
    assert {entry.name for entry in index.models} == {"m"}
    index = await stub.RepositoryIndex(pb.RepositoryIndexRequest(), metadata=bearer(STRANGER))
    assert {entry.name for entry in index.models} == {"theirs"}
    for method in ("RepositoryModelLoad", "RepositoryModelUnload"):
        request = getattr(pb, f"{method}Request")(model_name="theirs")
        assert (await outcome(getattr(stub, method)(request, metadata=key)))[0] is Code.NOT_FOUND
    assert gateway.repository.placed == []


async def test_sharing_given_and_taken_back(gateway: GatewayUnderTest, board: NoticeBoard) -> None:
    board.hear_model(notice_of("theirs", "u", shared_with=["t"], generation=2))
    assert (await infer(gateway, "theirs"))[0] is OK
    board.hear_model(notice_of("theirs", "u", generation=3))
    assert (await infer(gateway, "theirs"))[0] is Code.NOT_FOUND


async def test_a_key_that_may_only_look(gateway: GatewayUnderTest) -> None:
    assert (await infer(gateway, secret=AUDITOR))[0] is Code.PERMISSION_DENIED
    assert (await gateway.stub.ModelReady(pb.ModelReadyRequest(name="m"), metadata=bearer(AUDITOR))).ready


async def test_a_model_that_nobody_told_of_is_refused_for_now(gateway: GatewayUnderTest) -> None:
    gateway.tell(worker_of("a", copy_of("m"), copy_of("untold")))
    code, details = await infer(gateway, "untold")
    assert code is Code.UNAVAILABLE
    assert "try again" in details
    assert (await infer(gateway, "nowhere"))[0] is Code.NOT_FOUND


async def test_a_load_of_what_nobody_told_of(gateway: GatewayUnderTest) -> None:
    gateway.repository.versions.append(published("untold"))
    load = gateway.stub.RepositoryModelLoad
    assert (await outcome(load(pb.RepositoryModelLoadRequest(model_name="untold"), metadata=bearer(ADMIN))))[0] is (
        Code.UNAVAILABLE
    )
    assert (await outcome(load(pb.RepositoryModelLoadRequest(model_name="nowhere"), metadata=bearer(ADMIN))))[0] is (
        Code.NOT_FOUND
    )
    assert gateway.repository.placed == []


async def test_a_stream_keeps_to_the_same_rules(board: NoticeBoard) -> None:
    links = {"a": FakeLink("127.0.0.1:1", [_answer])}
    async with gateway_under_test(worker_of("a", copy_of("m"), copy_of("theirs")), board=board, links=links) as gateway:
        stream: Any = gateway.channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer", None, pb.ModelStreamInferResponse.FromString
        )(metadata=bearer(CALLER), timeout=10)
        for model, version in (("theirs", ""), ("m", STABLE), ("m", "9")):
            request = pb.ModelInferRequest(model_name=model, model_version=version)
            await stream.write(request.SerializeToString())
        await stream.done_writing()
        errors = [answer.error_message async for answer in stream]
        assert errors[0] == "Request for unknown model: 'theirs' is not found"
        assert errors[1:4] == [""] * 3
        assert errors[4] == "Request for unknown model: 'm' version 9 is not found"
        assert links["a"].versions == ["1"]


def _answer(payload: bytes) -> bytes:
    return pb.ModelStreamInferResponse().SerializeToString() + b"\x78"  # the link puts a digit after it
