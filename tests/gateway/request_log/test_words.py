"""Which words of requests reach the log: those of callers who were let in, where it keeps them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc.aio
import pytest
from prometheus_client import CollectorRegistry

from gateway.exchange import MOST_SAID_BYTES, Exchange, Exchanges, Said
from gateway.metrics import GatewayMetrics
from gateway.openai.servicer import SERVICE, OpenAIServicer
from gateway.request_log.entries import entry_of
from gateway.request_log.types import Entry, KeptBodies, Origin
from runtime.serving import Listen, serving
from tests.gateway.openai.mesh import SECRET, Served, small_mesh
from tests.gateway.request_log.ground import LogUnderTest, log_under_test

CHAT = {"model": "sums", "messages": [{"role": "user", "content": "write to ann@example.com"}]}


@asynccontextmanager
async def served(bodies: KeptBodies) -> AsyncIterator[tuple[Served, LogUnderTest]]:
    under_test, mesh = log_under_test(bodies=bodies), small_mesh()
    mesh.exchanges = Exchanges(GatewayMetrics(CollectorRegistry()), mesh.limiter, under_test.log)
    servicer = OpenAIServicer(mesh, None, None)  # type: ignore[arg-type]  # no files or batches are asked for
    async with serving([Listen("127.0.0.1", 0)], [servicer.register], [SERVICE], drain_grace_s=0.1) as running:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{running.ports[0]}") as channel:
            yield Served(mesh, channel, None), under_test  # type: ignore[arg-type]


def logged(under_test: LogUnderTest) -> list[Entry]:
    return [entry_of(noted, Origin()) for noted in under_test.log.take()]


async def test_a_chat_and_its_answer_are_kept_redacted() -> None:
    async with served(KeptBodies.REDACTED) as (service, under_test):
        await service.post("CreateChatCompletion", json.dumps(CHAT).encode())
    (found,) = logged(under_test)
    assert (found.method, found.asked, found.code) == ("CreateChatCompletion", "sums", "OK")
    assert (found.prompt_tokens, found.completion_tokens, found.key_id) == (7, 3, "k1")
    assert "[email]" in (found.request_body or "")
    assert "example.com" not in (found.request_body or "")
    assert json.loads(found.answer_body or "")["choices"][0]["message"]["content"] == 'Hello "wörld"\n'


async def test_of_streams_the_question_is_kept_and_of_embeddings_too() -> None:
    async with served(KeptBodies.REDACTED) as (service, under_test):
        await service.post("CreateChatCompletion", json.dumps(CHAT | {"stream": True}).encode())
        await service.post("CreateCompletion", b'{"model":"words","prompt":"one"}')
        embedding = await service.ask("CreateEmbeddings", _body(b'{"model":"vectors","input":"two"}'))
        assert embedding
    stream, text, vectors = logged(under_test)
    assert (stream.answer_body, vectors.answer_body) == (None, None)
    assert stream.streamed
    assert (text.request_body, vectors.request_body) == (
        '{"model":"words","prompt":"one"}',
        '{"model":"vectors","input":"two"}',
    )


@pytest.mark.parametrize("secret", ["", "sk-nobody"])
async def test_nothing_is_kept_of_who_was_not_let_in(secret: str) -> None:
    async with served(KeptBodies.REDACTED) as (service, under_test):
        await service.post("CreateChatCompletion", json.dumps(CHAT).encode(), secret=secret)
    (found,) = logged(under_test)
    assert (found.request_body, found.answer_body, found.code, found.tenant) == (None, None, "UNAUTHENTICATED", "")


async def test_where_they_are_off_none_is_even_held() -> None:
    async with served(KeptBodies.OFF) as (service, under_test):
        await service.post("CreateChatCompletion", json.dumps(CHAT).encode(), secret=SECRET)
        await service.post("CreateChatCompletion", b"{", secret=SECRET)
    good, bad = logged(under_test)
    assert (good.request_body, good.answer_body, bad.request_body) == (None, None, None)
    assert (bad.code, bad.asked, good.model) == ("INVALID_ARGUMENT", "", "sums")
    assert "ann@example" not in repr(under_test.log.take())


def test_long_ones_are_not_held() -> None:
    exchange = Exchange("CreateChatCompletion", said=Said())
    exchange.says(asked=b"x" * (MOST_SAID_BYTES + 1), answered=b"y" * (MOST_SAID_BYTES + 1))
    assert exchange.said == Said()
    exchange.says(asked=memoryview(b"x" * MOST_SAID_BYTES))
    exchange.says(answered=b"y")
    assert exchange.said == Said(b"x" * MOST_SAID_BYTES, b"y")


def _body(data: bytes) -> object:
    from google.api.httpbody_pb2 import HttpBody

    return HttpBody(content_type="application/json", data=data)
