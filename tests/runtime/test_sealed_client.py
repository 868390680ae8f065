"""The sealed client against a gateway that may lie and a way that may cut or alter: it believes the authority alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from inference import grpc_service_pb2
from penstock.gateway.v1 import gateway_pb2, gateway_pb2_grpc
from penstock.worker.v1 import presence_pb2, sealed_pb2, sealed_pb2_grpc, worker_pb2

from runtime.errors import Code, FailedPrecondition, PenstockError, ResourceExhausted
from runtime.identity import Authority, NodeIdentity, Role
from runtime.ids import WorkerId
from runtime.records import RecordRefused, sign_record
from runtime.sealed_client import AnotherAuthority, SealedClient
from runtime.sealing import AnswerAltered, AnswerSealer, SealedCall, open_call, reservation_id, token_sha256_of
from runtime.serving import Listen, serving

Parts = list[sealed_pb2.CallSealedResponse]
MARKER = b"what nobody on the way may read"


@dataclass
class Gateway(gateway_pb2_grpc.ReservationServiceServicer):
    """Answers what it is told to."""

    answer: gateway_pb2.CreateReservationResponse
    asked: list[gateway_pb2.CreateReservationRequest] = field(default_factory=list)
    keys: list[Any] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)

    async def CreateReservation(self, request: gateway_pb2.CreateReservationRequest, context: Any) -> Any:
        self.asked.append(request)
        self.keys.append(dict(context.invocation_metadata()).get("authorization"))
        return self.answer

    async def DeleteReservation(self, request: gateway_pb2.DeleteReservationRequest, context: Any) -> Any:
        self.deleted.append(request.reservation_id)
        return gateway_pb2.DeleteReservationResponse()


@dataclass
class Worker(sealed_pb2_grpc.SealedServiceServicer):
    """Answers as a worker does, and then somebody on the way does what `spoil` says."""

    identity: NodeIdentity
    messages: list[bytes] = field(default_factory=list)
    spoil: Callable[[Parts], Parts] = list
    calls: list[SealedCall] = field(default_factory=list)
    boxes: list[bytes] = field(default_factory=list)

    async def CallSealed(self, request: sealed_pb2.CallSealedRequest, context: Any) -> None:  # type: ignore[override]
        self.boxes.append(request.box)
        call = open_call(request.box, self.identity.signing_key.to_curve25519_private_key())
        self.calls.append(call)
        sealer = AnswerSealer(call.reply_key)
        sealed = [sealer.seal(each, final=place == len(self.messages)) for place, each in enumerate(self.messages, 1)]
        parts = [sealed_pb2.CallSealedResponse(message=each) for each in sealed]
        if parts:
            parts[0].header = sealer.header
        for part in self.spoil(parts):
            await context.write(part)


@dataclass
class Way:
    authority: Authority
    worker: Worker
    gateway: Gateway
    channel: grpc.aio.Channel

    @property
    def client(self) -> SealedClient:
        return SealedClient(self.channel, "sk-key", self.authority.certificate_pem)

    def lie(self, **changes: Any) -> None:
        for name, value in changes.items():
            if name == "presence":
                self.gateway.answer.presence.CopyFrom(presence_pb2.SignedRecord.FromString(value))
            else:
                setattr(self.gateway.answer, name, value)


def data(content: bytes) -> bytes:
    return sealed_pb2.SealedAnswer(data=content).SerializeToString()


def answer(content: bytes) -> bytes:
    return data(grpc_service_pb2.ModelInferResponse(model_name="m", raw_output_contents=[content]).SerializeToString())


def presence_of(identity: NodeIdentity, port: int) -> presence_pb2.Presence:
    return presence_pb2.Presence(
        worker_id=identity.node_id, sealed_address=f"127.0.0.1:{port}", x25519_public_key=identity.x25519_public_key
    )


@pytest.fixture
async def way(tmp_path: Path) -> AsyncIterator[Way]:
    authority = Authority.open(tmp_path / "ca")
    identity = authority.enrol(tmp_path / "worker", Role.WORKER)
    worker = Worker(identity, [answer(MARKER), b""])
    gateway = Gateway(gateway_pb2.CreateReservationResponse())
    async with AsyncExitStack() as stack:

        def on_worker(server: grpc.aio.Server) -> None:
            sealed_pb2_grpc.add_SealedServiceServicer_to_server(worker, server)

        def on_gateway(server: grpc.aio.Server) -> None:
            gateway_pb2_grpc.add_ReservationServiceServicer_to_server(gateway, server)

        listen = Listen("127.0.0.1", 0, identity, asks_certificate=False)
        there = await stack.enter_async_context(serving([listen], [on_worker], [], drain_grace_s=0.1))
        here = await stack.enter_async_context(serving([Listen("127.0.0.1", 0)], [on_gateway], [], drain_grace_s=0.1))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{here.ports[0]}"))
        record = sign_record(identity, presence_of(identity, there.ports[0]).SerializeToString())
        gateway.answer = gateway_pb2.CreateReservationResponse(
            reservation_id=reservation_id(WorkerId(identity.node_id), "0" * 32),
            worker_id=identity.node_id,
            version="3",
            address="nowhere:1",
            presence=presence_pb2.SignedRecord.FromString(record),
            expires_at_ms=5_000,
            authority=authority.certificate_der,
        )
        yield Way(authority, worker, gateway, channel)


REQUEST = grpc_service_pb2.ModelInferRequest(model_name="m", raw_input_contents=[MARKER])


async def test_a_call_goes_to_the_worker_that_signed_and_the_place_is_given_back(way: Way) -> None:
    async with way.client.reserved("m", "stable", ttl_s=30) as worker:
        assert (worker.version, worker.expires_wall_s) == ("3", 5.0)
        assert (await worker.infer(REQUEST)).raw_output_contents == [MARKER]
        assert not way.gateway.deleted
    (asked,), (call,) = way.gateway.asked, way.worker.calls
    assert [asked.model, asked.version, asked.ttl_ms] == ["m", "stable", 30_000]
    assert way.gateway.keys == ["Bearer sk-key"]
    assert asked.token_sha256 == token_sha256_of(call.token)
    assert (call.reservation_id, call.worker_id) == (way.gateway.answer.reservation_id, way.worker.identity.node_id)
    assert way.gateway.deleted == [way.gateway.answer.reservation_id]
    assert MARKER not in way.worker.boxes[0]


async def test_each_reservation_has_a_secret_and_each_call_a_key_of_its_own(way: Way) -> None:
    for _ in range(2):
        async with way.client.reserved("m") as worker:
            await worker.infer(REQUEST)
            await worker.infer(REQUEST)
    tokens, reply_keys = [call.token for call in way.worker.calls], {call.reply_key for call in way.worker.calls}
    assert tokens[0] == tokens[1] != tokens[2] == tokens[3]
    assert len(reply_keys) == 4


async def reserve(way: Way) -> None:
    async with way.client.reserved("m"):
        raise AssertionError("it was believed")


async def test_a_gateway_that_names_a_key_of_its_own_is_not_believed(way: Way, tmp_path: Path) -> None:
    elsewhere = Authority.open(tmp_path / "theirs")
    theirs = elsewhere.enrol(tmp_path / "their worker", Role.WORKER)
    sibling = way.authority.enrol(tmp_path / "a gateway", Role.GATEWAY)
    own = way.worker.identity
    for signer, told in ((theirs, theirs), (theirs, own), (sibling, own), (sibling, sibling)):
        way.lie(presence=sign_record(signer, presence_of(told, 1).SerializeToString()), worker_id=told.node_id)
        with pytest.raises(RecordRefused):
            await reserve(way)
    way.lie(presence=sign_record(own, presence_of(own, 1).SerializeToString()), worker_id="another")
    with pytest.raises(RecordRefused):
        await reserve(way)
    way.lie(authority=elsewhere.certificate_der)
    with pytest.raises(AnotherAuthority):
        await reserve(way)
    assert not way.worker.boxes
    assert len(way.gateway.deleted) == 6, "what is not used is given back"


def cut(parts: Parts) -> Parts:
    return parts[:-1]


def nothing(_: Parts) -> Parts:
    return []


def altered(parts: Parts) -> Parts:
    message = bytearray(parts[0].message)
    message[-1] ^= 1
    parts[0].message = bytes(message)
    return parts


def other_header(parts: Parts) -> Parts:
    parts[0].header = b"h" * len(parts[0].header)
    return parts


def twice(parts: Parts) -> Parts:
    return [parts[0], *parts]


def swapped(parts: Parts) -> Parts:
    parts[0].message, parts[1].message = parts[1].message, parts[0].message
    return parts


def unsealed(_: Parts) -> Parts:
    return [sealed_pb2.CallSealedResponse(header=b"h" * 24, message=answer(b"a lie"))]


def goes_on(parts: Parts) -> Parts:
    return [*parts, parts[0]]


@pytest.mark.parametrize("spoil", [cut, nothing, altered, other_header, twice, swapped, unsealed, goes_on])
async def test_an_answer_that_was_cut_or_altered_is_never_taken_for_one(way: Way, spoil: Callable[[Parts], Parts]) -> None:
    way.worker.spoil = spoil
    async with way.client.reserved("m") as worker:
        with pytest.raises(AnswerAltered):
            await worker.infer(REQUEST)


async def test_a_stream_that_is_cut_gives_what_came_and_then_says_so(way: Way) -> None:
    texts = ["one ", "two ", "three"]
    way.worker.messages = [data(worker_pb2.GenerateResponse(text=text).SerializeToString()) for text in texts] + [b""]
    asked = worker_pb2.GenerateRequest(prompt="count")
    async with way.client.reserved("m") as worker:
        assert [piece.text async for piece in worker.generate(asked)] == texts
        way.worker.spoil = cut
        pieces = worker.generate(asked)
        assert [(await anext(pieces)).text for _ in texts] == texts
        with pytest.raises(AnswerAltered, match="cut off"):
            await anext(pieces)


async def test_what_the_worker_says_went_wrong_comes_as_our_own_error(way: Way) -> None:
    failure = worker_pb2.Failure(code=8, reason="RESOURCE_EXHAUSTED", message="the queue is full", retry_after_ms=250)
    way.worker.messages = [sealed_pb2.SealedAnswer(failure=failure).SerializeToString()]
    async with way.client.reserved("m") as worker:
        with pytest.raises(ResourceExhausted, match="the queue is full") as caught:
            await worker.infer(REQUEST)
    assert caught.value.retry_after_s == 0.25


async def test_two_answers_to_one_request_are_none(way: Way) -> None:
    way.worker.messages = [answer(b"1"), answer(b"2"), b""]
    async with way.client.reserved("m") as worker:
        with pytest.raises(AnswerAltered, match="2 answers"):
            await worker.infer(REQUEST)


async def test_a_worker_that_is_not_there_is_told_of(way: Way) -> None:
    own = way.worker.identity
    way.lie(presence=sign_record(own, presence_of(own, 1).SerializeToString()))
    async with way.client.reserved("m") as worker:
        with pytest.raises(PenstockError) as caught:
            await worker.infer(REQUEST, timeout_s=5)
    assert caught.value.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)


async def test_an_authority_that_is_none_is_named(way: Way) -> None:
    with pytest.raises(FailedPrecondition, match=r"ca\.pem"):
        SealedClient(way.channel, "", b"no certificate")


async def test_without_a_key_none_is_sent(way: Way) -> None:
    async with SealedClient(way.channel, "", way.authority.certificate_pem).reserved("m"):
        assert way.gateway.keys == [None]
