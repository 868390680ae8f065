"""HTTP/2 that would become something else in HTTP/1.1, or that contradicts itself: Envoy resets it before anybody is asked; the
gateway's own port, behind which nothing is written anew, takes each call for what it is and for no other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

import pytest
import pytest_asyncio

from gateway.xds.types import Endpoint
from tests.gateway.openai.mesh import SECRET
from tests.harm.front import CHAT_BODY, Front
from tests.support.raw_http2 import Pairs, block_of, data_frame, headers_frame, http2_connection, request_head

pytestmark = pytest.mark.asyncio(loop_scope="module")

ID = b"@@@@"
HEAD = request_head("/v1/models", (b"authorization", f"Bearer {SECRET}".encode()), (b"x-request-id", ID))
POST = request_head(
    "/v1/chat/completions",
    (b"authorization", f"Bearer {SECRET}".encode()),
    (b"x-request-id", ID),
    (b"content-type", b"application/json"),
    method="POST",
)
GRPC = request_head(
    "/inference.GRPCInferenceService/ServerLive",
    (b"x-request-id", ID),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
    method="POST",
)
EMPTY = bytes(5)
"""A message of gRPC without a byte in it."""


def got(*more: tuple[bytes, bytes], head: Pairs = HEAD) -> bytes:
    return headers_frame(1, block_of([*head, *more]))


def replaced(name: bytes, value: bytes, head: Pairs = HEAD) -> Pairs:
    return [(each, value if each == name else known) for each, known in head]


def posted(*more: tuple[bytes, bytes], body: bytes = CHAT_BODY) -> bytes:
    return headers_frame(1, block_of([*POST, *more]), "END_HEADERS") + data_frame(1, body, "END_STREAM")


def trailed(*trailers: tuple[bytes, bytes]) -> bytes:
    body = headers_frame(1, block_of(POST), "END_HEADERS") + data_frame(1, CHAT_BODY)
    return body + headers_frame(1, block_of(trailers))


def called(*more: tuple[bytes, bytes], head: Pairs = GRPC, message: bytes = EMPTY) -> bytes:
    return headers_frame(1, block_of([*head, *more]), "END_HEADERS") + data_frame(1, message, "END_STREAM")


LENGTH = b"%d" % len(CHAT_BODY)
REFUSED: Mapping[str, bytes] = {
    "chunks": got((b"transfer-encoding", b"chunked")),
    "connection": got((b"connection", b"close")),
    "keep-alive": got((b"keep-alive", b"timeout=5")),
    "proxy-connection": got((b"proxy-connection", b"close")),
    "upgrade": got((b"upgrade", b"h2c")),
    "te of another kind": got((b"te", b"gzip")),
    "capitals in a name": got((b"X-Injected", b"1")),
    "a space in a name": got((b"x a", b"1")),
    "a colon in a name": got((b"x:a", b"1")),
    "a line in a name": got((b"x-a\r\nx-injected", b"1")),
    "no name": got((b"", b"1")),
    "a line in a value": got((b"x-a", b"b\r\nx-injected: 1")),
    "a request in a value": got((b"x-a", b"b\r\n\r\nGET /v1/models/hidden HTTP/1.1\r\nhost: edge\r\n\r\n")),
    "a line feed in a value": got((b"x-a", b"b\nx-injected: 1")),
    "a carriage return in a value": got((b"x-a", b"b\rx-injected: 1")),
    "a NUL in a value": got((b"x-a", b"b\0c")),
    "a pseudo header after another": got(head=[*HEAD[1:], HEAD[0]]),
    "two paths": got(head=[*HEAD[:2], (b":path", b"/v1/files"), *HEAD[2:]]),
    "two methods": got(head=[HEAD[0], *HEAD]),
    "no path": got(head=[*HEAD[:1], *HEAD[2:]]),
    "an empty path": got(head=replaced(b":path", b"")),
    "a path that begins with no slash": got(head=replaced(b":path", b"v1/models")),
    "a line in the path": got(head=replaced(b":path", b"/v1/models HTTP/1.1\r\nx-injected: 1\r\nx-a: b")),
    "a line in the method": got(head=replaced(b":method", b"GET /v1/files HTTP/1.1\r\nx-a: b")),
    "a line in the authority": got(head=replaced(b":authority", b"edge\r\nx-injected: 1")),
    "a line in the scheme": got(head=replaced(b":scheme", b"http\r\nx-injected: 1")),
    "a pseudo header nobody knows": got(head=[(b":x", b"y"), *HEAD]),
    "a status": got(head=[(b":status", b"200"), *HEAD]),
    "a tunnel": got(head=[(b":protocol", b"websocket"), *replaced(b":method", b"CONNECT")]),
    "a length and no body": got((b"content-length", b"5")),
    "more than the length": posted((b"content-length", b"3")),
    "less than the length": posted((b"content-length", b"%d" % (len(CHAT_BODY) + 5))),
    "two lengths": posted((b"content-length", LENGTH), (b"content-length", b"3")),
    "a negative length": posted((b"content-length", b"-1")),
    "a length of no number": posted((b"content-length", b"x")),
    "a list of lengths": posted((b"content-length", LENGTH + b", " + LENGTH)),
    "a path in the trailers": trailed((b":path", b"/v1/files")),
    "an even stream": headers_frame(2, block_of(HEAD)),
    "a stream of number 0": b"\x00\x00\x01\x01\x05\x00\x00\x00\x00\x82",
    "data before headers": data_frame(1, b"x"),
    "a frame that is too long": b"\xff\xff\xff\x01\x04\x00\x00\x00\x01" + bytes(20_000),
    "HTTP/1.1": b"GET /v1/models/hidden HTTP/1.1\r\nhost: edge\r\n\r\n",
}
ANSWERED: Mapping[str, bytes] = {
    "nothing wrong": got(),
    "a host besides the authority": got((b"host", b"another")),
    "a space before a value": got((b"x-a", b" b")),
    "te for trailers": got((b"te", b"trailers")),
    "a header in the trailers": trailed((b"x-injected", b"1"), (b"authorization", b"Bearer sk-stranger")),
    "a priority of itself": b"\x00\x00\x05\x02\x00\x00\x00\x00\x01\x00\x00\x00\x01\x00" + got(),
}
OVER_GRPC: Mapping[str, bytes] = {
    "chunks": called((b"transfer-encoding", b"chunked")),
    "connection": called((b"connection", b"close")),
    "upgrade": called((b"upgrade", b"h2c")),
    "te of another kind": called(head=replaced(b"te", b"gzip", GRPC)),
    "capitals in a name": called((b"X-Injected", b"1")),
    "a line in a name": called((b"x-a\r\nx-injected", b"1")),
    "no name": called((b"", b"1")),
    "a line in a value": called((b"x-a", b"b\r\nx-injected: 1")),
    "a NUL in a value": called((b"x-a", b"b\0c")),
    "two paths": called(head=[*GRPC[:2], (b":path", b"/inference.GRPCInferenceService/ServerReady"), *GRPC[2:]]),
    "no path": called(head=[*GRPC[:1], *GRPC[2:]]),
    "a line in the path": called(head=replaced(b":path", b"/inference.GRPCInferenceService/ServerLive\r\nx-a: b", GRPC)),
    "a line in the method": called(head=replaced(b":method", b"POST /x HTTP/1.1\r\nx-a: b", GRPC)),
    "GET": called(head=replaced(b":method", b"GET", GRPC)),
    "a length that is wrong": called((b"content-length", b"1")),
    "a message that says it has 4 GiB": called(message=b"\x00\xff\xff\xff\xff"),
    "a message that says it is packed": called(message=b"\x01\x00\x00\x00\x00"),
    "two messages": called(message=2 * EMPTY),
    "no Base64": called((b"x-bin", b"!!!")),
    "no time": called((b"grpc-timeout", b"-1S")),
    "an encoding nobody knows": called((b"grpc-encoding", b"xgzip")),
    "a status": called((b"grpc-status", b"0")),
    "a frame that is too long": b"\xff\xff\xff\x01\x04\x00\x00\x00\x01" + bytes(20_000),
    "HTTP/1.1": b"GET /v1/models/hidden HTTP/1.1\r\nhost: edge\r\n\r\n",
}
Reached = Mapping[str, tuple[int | None, list[str]]]
"""By name: the status, and the methods that were asked."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def over_http(front: Front) -> AsyncIterator[Reached]:
    yield await _reached(front, front.http, {**REFUSED, **ANSWERED})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def over_grpc(front: Front) -> AsyncIterator[Reached]:
    yield await _reached(front, front.grpc, OVER_GRPC)


async def _reached(front: Front, at: Endpoint, sent: Mapping[str, bytes]) -> Reached:
    front.seen.take()
    numbers = {name: b"%03d-" % number for number, name in enumerate(sent)}
    async with front.innocents():
        statuses = await asyncio.gather(*(_sent(at, request.replace(ID, numbers[name])) for name, request in sent.items()))
    seen = front.seen.take()
    assert not any("x-injected" in headers for _, headers in seen)
    found = {}
    for name, status in zip(sent, statuses, strict=True):
        own = [method for method, headers in seen if headers.get("x-request-id") == numbers[name].decode()]
        found[name] = status, own
    return found


async def _sent(at: Endpoint, request: bytes) -> int | None:
    async with http2_connection(at) as connection:
        await connection.send(request)
        return await connection.outcome(2 if request[8:9] == b"\x02" else 1)


@pytest.mark.parametrize("name", REFUSED)
async def test_what_contradicts_itself_is_reset(over_http: Reached, front: Front, name: str) -> None:
    status, methods = over_http[name]
    assert status is None or 400 <= status < 500, status
    number = f"{[*REFUSED].index(name):03d}-"
    assert methods in ([], ["CreateChatCompletion"]), "of a body that does not fit, the headers may have gone ahead"
    assert all(call.request_id != number for call in front.mesh.router.calls)


@pytest.mark.parametrize("name", ANSWERED)
async def test_what_is_allowed_is_answered_once(over_http: Reached, name: str) -> None:
    status, methods = over_http[name]
    assert status == 200
    assert len(methods) == 1


@pytest.mark.parametrize("name", OVER_GRPC)
async def test_a_call_is_taken_for_itself_alone(over_grpc: Reached, name: str) -> None:
    status, methods = over_grpc[name]
    assert status in (None, 200)
    assert len(methods) <= 1, methods
    assert all(method.startswith("ServerLive") or method == "ServerReady" for method in methods)


async def test_afterwards_it_is_well(front: Front, over_http: Reached, over_grpc: Reached) -> None:
    await front.is_well()
