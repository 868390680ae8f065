from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.worker.v1 import worker_pb2

from gateway.links.calls import StreamingCall, UnaryCall
from gateway.links.codec import answers_of, open_frame, open_parts
from gateway.links.link import backoff_s
from gateway.links.types import CallContext, LinkLost, LinkSettings, Method
from runtime.errors import Aborted, DataLoss
from runtime.streams import PART_BYTES, PayloadTooLarge


async def test_a_unary_answer_comes_whole_from_its_parts() -> None:
    call = UnaryCall(1, asyncio.get_running_loop(), 10)
    call.take(b"ab", more=True, end=False)
    call.take(b"cd", more=False, end=True)
    assert await call.answer == b"abcd"


async def test_a_unary_answer_beyond_the_limit_is_refused() -> None:
    call = UnaryCall(1, asyncio.get_running_loop(), 3)
    call.take(b"ab", more=True, end=False)
    with pytest.raises(PayloadTooLarge):
        call.take(b"cd", more=False, end=True)


async def test_a_call_fails_or_answers_but_never_both() -> None:
    call = UnaryCall(1, asyncio.get_running_loop(), 10)
    call.fail(Aborted("first"))
    call.take(b"x", more=False, end=True)
    call.fail(LinkLost("later"))
    with pytest.raises(Aborted):
        await call.answer


@given(st.lists(st.tuples(st.binary(max_size=5), st.integers(1, 3)), max_size=30), st.integers(1, 8), st.booleans())
def test_all_answers_of_a_stream_are_read_once_in_order_within_the_credit(
    messages: list[tuple[bytes, int]], credit: int, fails: bool
) -> None:
    asyncio.run(_read_all(messages, credit, fails))


async def _read_all(messages: list[tuple[bytes, int]], credit: int, fails: bool) -> None:
    allowed = credit

    def grant(call_id: int, count: int) -> None:
        nonlocal allowed
        allowed += count

    call = StreamingCall(1, 100, credit, grant)
    read: list[bytes | None] = []
    for message, parts in messages:
        while not allowed:  # a worker waits for credit; a reader that reads on always gets it
            read.append(await call.next())
        allowed -= 1
        for n in range(parts - 1):
            call.take(message[n : n + 1], more=True, end=False)
        call.take(message[parts - 1 :], more=False, end=False)
    if fails:
        call.fail(Aborted("broke"))
    else:
        call.take(b"", more=False, end=True)
    while len(read) < len(messages):
        read.append(await call.next())
    assert read == [message for message, _ in messages]
    assert call.started == bool(messages)
    if fails:
        with pytest.raises(Aborted):
            await call.next()
    else:
        assert await call.next() is None


@given(st.integers(0, 3 * PART_BYTES), st.one_of(st.none(), st.floats(0.001, 100)))
def test_a_request_in_parts_says_the_same_as_in_one_frame(size: int, timeout_s: float | None) -> None:
    payload = bytes(size)
    context = CallContext("id", "acme", 2, None if timeout_s is None else 5 + timeout_s, "00-trace")
    arguments = (9, Method.GENERATE, "m", "1", payload, context, 5.0, 7)
    whole = worker_pb2.ExecuteRequest.FromString(open_frame(*arguments)).frames[0]
    parts = list(worker_pb2.ExecuteRequest.FromString(b"".join(open_parts(*arguments))).frames)
    assert b"".join([parts[0].open.payload, *(part.data for part in parts[1:])]) == whole.open.payload == payload
    assert [part.payload_end for part in parts] == [False] * (len(parts) - 1) + [True]
    assert whole.payload_end
    assert parts[0].open.payload_bytes == size
    assert whole.open.timeout_us == (0 if timeout_s is None else pytest.approx(timeout_s * 1e6, abs=2))


def test_what_is_no_answer_is_data_loss() -> None:
    with pytest.raises(DataLoss):
        answers_of(b"\xff\xff")


@given(st.integers(0, 1000), st.floats(0, 1, exclude_max=True))
def test_reconnects_wait_longer_each_time_within_the_bound(failures: int, spread: float) -> None:
    settings = LinkSettings()
    wait_s = backoff_s(failures, settings, spread)
    assert settings.backoff_initial_s / 2 <= wait_s <= settings.backoff_max_s
    assert backoff_s(failures + 1, settings, spread) >= wait_s
