"""Callers who take their time, two hundred at once: the others are served meanwhile, and nothing is kept of those."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import structlog.testing

from tests.gateway.edge import CALLER
from tests.gateway.openai.mesh import SECRET
from tests.harm.front import CHAT, CHAT_BODY, ENDLESS, PIECE_BYTES, Front, LongWinded
from tests.support.raw_http import RawConnection, raw_connection
from tests.support.raw_http2 import block_of, data_frame, headers_frame, http2_connection, request_head, settings_frame
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

SLOW = 200
READERS = 60
"""Each of them holds some megabytes of an answer that is made as fast as it is read: in windows, and in sockets' buffers."""

_KEY = f"authorization: Bearer {SECRET}\r\n".encode()
_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: edge\r\ncontent-type: application/json\r\n" + _KEY
_LENGTH = b"content-length: %d\r\n\r\n" % len(CHAT_BODY)


@asynccontextmanager
async def many(front: Front, number: int = SLOW) -> AsyncIterator[list[RawConnection]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(raw_connection(front.http)) for _ in range(number)]


async def each(connections: list[RawConnection], act: Callable[[RawConnection], Awaitable[object]]) -> None:
    await asyncio.gather(*(act(connection) for connection in connections))


async def dripped(connection: RawConnection, rest: bytes) -> None:
    """A byte now and then, until the other side has had enough."""
    for byte in rest:
        await connection.send(bytes([byte]))
        await connection.read(0.2)
        if connection.closed or connection.statuses:
            return


async def test_headers_that_take_their_time_are_ended_and_nobody_hears_of_them(front: Front) -> None:
    async with many(front) as slow, front.innocents(), front.holding_no_more_than(60):
        front.seen.take()
        await each(slow, lambda one: dripped(one, b"GET /v1/slow" + b"w" * 100 + b" HTTP/1.1\r\nhost: edge\r\n" + b"x" * 500))
        await each(slow, lambda one: one.until_closed())
        assert {tuple(one.statuses) for one in slow} <= {(408,), ()}
        assert {method for method, _ in front.seen.take()} <= {"CreateChatCompletion", "ModelInfer"}
    await front.is_well()


async def test_bodies_that_stop_coming_are_ended(front: Front) -> None:
    async with many(front) as slow, front.innocents(), front.holding_no_more_than(60):
        asked = len(front.mesh.router.asked)
        await each(slow, lambda one: one.send(_HEAD + _LENGTH + CHAT_BODY[:5]))
        await each(slow, lambda one: one.answered())
        assert {tuple(one.statuses) for one in slow} == {(408,)}
        assert len(front.mesh.router.asked) - asked < SLOW, "of those none; of the innocent fewer"
    await front.is_well()


async def test_bodies_that_drip_hold_up_nobody(front: Front) -> None:
    async with many(front) as slow, front.innocents() as tally:
        await each(slow, lambda one: one.send(_HEAD + _LENGTH))
        await each(slow, lambda one: dripped(one, CHAT_BODY[:10]))
        assert tally.answered > 2
        assert not any(one.statuses for one in slow), "who sends something now and then is waited for"
        await each(slow, lambda one: one.send(CHAT_BODY[10:]))
        await each(slow, lambda one: one.answered())
        assert {tuple(one.statuses) for one in slow} == {(200,)}
    await front.is_well()


async def test_readers_of_an_endless_answer_who_do_not_read_are_ended(front: Front) -> None:
    router = front.mesh.router
    assert isinstance(router, LongWinded)
    asked = json.dumps({"model": ENDLESS, "stream": True, "messages": [{"role": "user", "content": "go on"}]}).encode()
    head = _HEAD + b"content-length: %d\r\n\r\n" % len(asked)
    with structlog.testing.capture_logs() as logged:
        await _unread(front, router, head + asked)
    assert [entry for entry in logged if entry["log_level"] == "error"] == [], "that callers go is no error of ours"
    await front.is_well()


async def _unread(front: Front, router: LongWinded, request: bytes) -> None:
    async with many(front, READERS) as slow, front.innocents(), front.holding_no_more_than(600):
        begun = router.begun_talking
        await each(slow, lambda one: one.send(request))
        await eventually(lambda: router.begun_talking - begun == READERS, patience_s=60)
        await eventually(lambda: router.talking == 0, patience_s=60)  # of those none has hung up
        per_reader = router.pieces * PIECE_BYTES / READERS / 2**20
        print(f"\nof an answer without end {per_reader:.1f} MiB were made for each who did not read")  # noqa: T201
        assert per_reader < 32


async def test_readers_with_a_closed_window_at_both_doors(front: Front) -> None:
    """They allow not one byte of an answer."""
    shut = settings_frame(initial_window_size=0)
    chat = request_head(
        CHAT, (b"authorization", f"Bearer {SECRET}".encode()), (b"content-type", b"application/json"), method="POST"
    )
    infer = request_head(
        "/inference.GRPCInferenceService/ModelInfer",
        (b"authorization", f"Bearer {CALLER}".encode()),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
        method="POST",
    )
    message = b"\x00\x00\x00\x00\x03\x0a\x01m"
    async with AsyncExitStack() as stack, front.innocents(), front.holding_no_more_than(120):
        for at, head, body in ((front.http, chat, CHAT_BODY), (front.grpc, infer, message)):
            for _ in range(20):
                connection = await stack.enter_async_context(http2_connection(at, settings=shut))
                for stream in range(1, 41, 2):
                    await connection.send(
                        headers_frame(stream, block_of(head), "END_HEADERS"), data_frame(stream, body, "END_STREAM")
                    )
        await asyncio.gather(*(front.chat() for _ in range(20)))
    await front.is_well()
