"""HTTP/1.1 that two readers could read differently: it is refused, or there is one way to read it, and nothing hidden in it is
ever asked.

All requests of the tables are sent at the same time, each on a connection of its own; who asked what is told by the ids.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.gateway.openai.mesh import SECRET
from tests.harm.front import CHAT_BODY, Front
from tests.support.raw_http import raw_connection

pytestmark = pytest.mark.asyncio(loop_scope="module")

_KEY = f"authorization: Bearer {SECRET}\r\n".encode()
HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: edge\r\ncontent-type: application/json\r\nx-request-id: @@@@sent\r\n" + _KEY
)
GET = b"GET /v1/models HTTP/1.1\r\nhost: edge\r\nx-request-id: @@@@sent\r\n" + _KEY
HIDDEN = b"GET /v1/models/hidden HTTP/1.1\r\nhost: edge\r\nx-request-id: @@@@hidden\r\n" + _KEY + b"\r\n"
"""What a front that reads the bytes before it otherwise would take for a request of its own."""

BODY = CHAT_BODY
LENGTH = b"content-length: %d\r\n" % len(BODY)
CHUNKED = b"transfer-encoding: chunked\r\n"
SIZE = b"%x" % len(BODY)
CHUNKS = SIZE + b"\r\n" + BODY + b"\r\n0\r\n\r\n"

REFUSED: Mapping[str, bytes] = {
    "a length, then chunks": HEAD + LENGTH + CHUNKED + b"\r\n" + CHUNKS + HIDDEN,
    "chunks, then a length": HEAD + CHUNKED + LENGTH + b"\r\n" + CHUNKS + HIDDEN,
    "a length that ends before the chunks do": HEAD + b"content-length: 4\r\n" + CHUNKED + b"\r\n" + CHUNKS + HIDDEN,
    "two lengths that differ": HEAD + LENGTH + b"content-length: 0\r\n\r\n" + BODY + HIDDEN,
    "one length twice": HEAD + LENGTH + LENGTH + b"\r\n" + BODY + HIDDEN,
    "a list of lengths": HEAD + b"content-length: %d, 0\r\n\r\n" % len(BODY) + BODY + HIDDEN,
    "a negative length": HEAD + b"content-length: -1\r\n\r\n" + HIDDEN,
    "a length with a sign": HEAD + b"content-length: +%d\r\n\r\n" % len(BODY) + BODY + HIDDEN,
    "a length in hexadecimal": HEAD + b"content-length: 0x%x\r\n\r\n" % len(BODY) + BODY + HIDDEN,
    "a length with a space in it": HEAD + b"content-length: 1 0\r\n\r\n" + BODY + HIDDEN,
    "a length beyond 64 bits": HEAD + b"content-length: 99999999999999999999999\r\n\r\n" + BODY + HIDDEN,
    "an empty length": HEAD + b"content-length: \r\n\r\n" + HIDDEN,
    "an encoding nobody knows": HEAD + b"transfer-encoding: xchunked\r\n\r\n" + CHUNKS + HIDDEN,
    "chunks, then something else": HEAD + b"transfer-encoding: chunked, identity\r\n\r\n" + CHUNKS + HIDDEN,
    "something else, then chunks": HEAD + b"transfer-encoding: identity, chunked\r\n\r\n" + CHUNKS + HIDDEN,
    "two encodings": HEAD + CHUNKED + b"transfer-encoding: identity\r\n\r\n" + CHUNKS + HIDDEN,
    "chunks after a vertical tab": HEAD + b"transfer-encoding: \x0bchunked\r\n\r\n" + CHUNKS + HIDDEN,
    "chunks behind a space in the name": HEAD + b"transfer-encoding : chunked\r\n\r\n" + CHUNKS + HIDDEN,
    "a chunk beyond 64 bits": HEAD + CHUNKED + b"\r\nfffffffffffffffff\r\n" + BODY + HIDDEN,
    "a chunk that wraps around": HEAD + CHUNKED + b"\r\n1%016x\r\n" % len(BODY) + BODY + b"\r\n0\r\n\r\n" + HIDDEN,
    "a negative chunk": HEAD + CHUNKED + b"\r\n-f\r\n" + BODY + HIDDEN,
    "a chunk with a sign": HEAD + CHUNKED + b"\r\n+" + CHUNKS + HIDDEN,
    "a chunk in 0x": HEAD + CHUNKED + b"\r\n0x" + CHUNKS + HIDDEN,
    "a chunk of no number": HEAD + CHUNKED + b"\r\nzz\r\n" + BODY + HIDDEN,
    "a line feed in an extension": HEAD + CHUNKED + b"\r\n" + SIZE + b";a\n" + BODY + b"\r\n0\r\n\r\n" + HIDDEN,
    "a chunk that is longer than it says": HEAD + CHUNKED + b"\r\n" + SIZE + b"\r\n" + BODY + b"XX0\r\n\r\n" + HIDDEN,
    "chunks of bare line feeds": HEAD + CHUNKED + b"\r\n" + CHUNKS.replace(b"\r\n", b"\n") + HIDDEN,
    "a space before a colon": HEAD + b"x-a : b\r\n" + LENGTH + b"\r\n" + BODY + HIDDEN,
    "a NUL in a value": HEAD + b"x-a: b\0c\r\n" + LENGTH + b"\r\n" + BODY + HIDDEN,
    "a NUL in a name": HEAD + b"x-\0a: b\r\n" + LENGTH + b"\r\n" + BODY + HIDDEN,
    "a header without a name": HEAD + b": b\r\n" + LENGTH + b"\r\n" + BODY + HIDDEN,
    "a header without a colon": HEAD + b"x-a\r\n" + LENGTH + b"\r\n" + BODY + HIDDEN,
    "no host": b"GET /v1/models HTTP/1.1\r\nx-request-id: @@@@sent\r\n" + _KEY + b"\r\n",
    "HTTP/0.9": b"GET /v1/models\r\n\r\n" + HIDDEN,
    "HTTP/1.0": GET.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n",
    "chunks in HTTP/1.0": HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + CHUNKED + b"\r\n" + CHUNKS + HIDDEN,
    "chunks and a length in HTTP/1.0": HEAD.replace(b"HTTP/1.1", b"HTTP/1.0") + CHUNKED + LENGTH + b"\r\n" + CHUNKS,
    "HTTP/2.0 in the first line": GET.replace(b"HTTP/1.1", b"HTTP/2.0") + b"\r\n",
    "a tunnel": b"CONNECT inner:1 HTTP/1.1\r\nhost: inner:1\r\nx-request-id: @@@@sent\r\n\r\n" + HIDDEN,
    "an upgrade to a web socket": GET + b"connection: upgrade\r\nupgrade: websocket\r\n\r\n",
    "a space in the path": GET.replace(b"/v1/models", b"/v1/mod els") + b"\r\n",
    "a fragment in the path": GET.replace(b"/v1/models", b"/v1/models#/../files") + b"\r\n",
    "a slash that is written otherwise": GET.replace(b"/v1/models", b"/v1/files%2f..%2fmodels") + b"\r\n",
    "ten thousand trailers": HEAD
    + CHUNKED
    + b"\r\n"
    + CHUNKS[:-2]
    + b"".join(b"x-%d: 1\r\n" % number for number in range(10_000))
    + b"\r\n",
}
"""Nobody is asked anything, and nothing more is read on this connection."""

READ_ONE_WAY: Mapping[str, tuple[bytes, int]] = {
    "a request behind a request": (GET + b"\r\n" + HIDDEN, 1),
    "a request in a body": (HEAD + b"content-length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN, 0),
    "a request in the body of a GET": (GET + b"content-length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN, 0),
    "a request in a chunk": (HEAD + CHUNKED + b"\r\n%x\r\n" % len(HIDDEN) + HIDDEN + b"\r\n0\r\n\r\n", 0),
    "a request in a trailer": (
        HEAD + CHUNKED + b"\r\n" + CHUNKS[:-2] + b"x-a: " + HIDDEN.partition(b"\r\n")[0] + b"\r\n\r\n",
        0,
    ),
    "a length with zeros before it": (HEAD + b"content-length: 000%d\r\n\r\n" % len(BODY) + BODY, 0),
    "chunks in other letters": (HEAD + b"transfer-encoding: cHuNkEd\r\n\r\n" + CHUNKS, 0),
    "chunks on the next line": (HEAD + b"transfer-encoding:\r\n chunked\r\n\r\n" + CHUNKS, 0),
    "chunks with an underscore": (HEAD + b"transfer_encoding: chunked\r\n" + LENGTH + b"\r\n" + BODY, 0),
    "a folded line": (HEAD + b"x-a: b\r\n x-injected: 1\r\n" + LENGTH + b"\r\n" + BODY, 0),
    "a bare carriage return": (HEAD + b"x-a: b\rx-injected: 1\r\n" + LENGTH + b"\r\n" + BODY, 0),
    "bare line feeds": (HEAD.replace(b"\r\n", b"\n") + LENGTH.replace(b"\r\n", b"\n") + b"\n" + BODY, 0),
    "two hosts": (GET + b"host: another\r\n\r\n", 0),
    "another host in the first line": (GET.replace(b"/v1/models", b"http://another/v1/models") + b"\r\n", 0),
    "dots in the path": (GET.replace(b"/v1/models", b"/v1/files/../models") + b"\r\n", 0),
    "an upgrade to HTTP/2": (
        GET + b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk\r\n\r\n",
        0,
    ),
    "a megabyte of an extension": (HEAD + CHUNKED + b"\r\n" + SIZE + b";" + b"a" * 1_000_000 + CHUNKS[len(SIZE) :], 0),
    "lines before the first": (b"\r\n\r\n" + GET + b"\r\n", 0),
}
"""Answered; and so many requests were behind the first on purpose."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came back, and what reached the services."""

    statuses: list[int]
    closed: bool
    begun: list[str]
    """Methods of which headers arrived."""
    asked: int
    """Of workers."""
    hidden: int
    injected: bool


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def outcomes(front: Front) -> AsyncIterator[Mapping[str, Outcome]]:
    sent = {**{name: (request, 0) for name, request in REFUSED.items()}, **READ_ONE_WAY}
    names = {name: f"{number:03d}-" for number, name in enumerate(sent)}
    async with front.innocents():
        told = await asyncio.gather(*(_sent(front, names[name], *what) for name, what in sent.items()))
        heard = dict(zip(sent, told, strict=True))
    seen, calls = front.seen.take(), front.mesh.router.calls
    yield {
        name: Outcome(
            *heard[name],
            begun=[method for method, headers in seen if headers.get("x-request-id") == f"{number}sent"],
            asked=sum(call.request_id == f"{number}sent" for call in calls),
            hidden=sum(headers.get("x-request-id") == f"{number}hidden" for _, headers in seen),
            injected=any("x-injected" in headers for _, headers in seen),
        )
        for name, number in names.items()
    }


async def _sent(front: Front, number: str, request: bytes, behind: int) -> tuple[list[int], bool]:
    async with raw_connection(front.http) as connection:
        await connection.send(request.replace(b"@@@@", number.encode()))
        while len(await connection.answered()) < 1 + behind and not connection.closed:
            pass
        if any(status >= 400 for status in connection.statuses):
            await connection.read(3)  # Envoy lingers for a second, so that the answer arrives
        return connection.statuses, connection.closed


@pytest.mark.parametrize("name", REFUSED)
async def test_what_can_be_read_in_two_ways_is_refused(outcomes: Mapping[str, Outcome], name: str) -> None:
    outcome = outcomes[name]
    assert len(outcome.statuses) <= 1, outcome
    assert all(400 <= status < 500 or status == 501 for status in outcome.statuses), outcome
    assert outcome.statuses or outcome.closed, outcome
    assert (outcome.asked, outcome.hidden) == (0, 0), outcome


@pytest.mark.parametrize("name", READ_ONE_WAY)
async def test_what_is_answered_is_read_in_one_way(outcomes: Mapping[str, Outcome], name: str) -> None:
    outcome, (_, behind) = outcomes[name], READ_ONE_WAY[name]
    assert len(outcome.begun) == 1, outcome
    assert outcome.hidden == behind, outcome
    assert len(outcome.statuses) == 1 + behind, outcome
    assert not outcome.injected


async def test_afterwards_it_is_well(front: Front, outcomes: Mapping[str, Outcome]) -> None:
    await front.is_well()
