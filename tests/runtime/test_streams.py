from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.streams import (
    AtOnce,
    FrameWriter,
    Outbox,
    PayloadTooLarge,
    Reassembly,
    WhileUnanswered,
    parts_of,
)

SIZE = 8  # bytes of a frame below: call, number


def frame(call_id: int, number: int) -> bytes:
    return call_id.to_bytes(4, "big") + number.to_bytes(4, "big")


def frames_in(message: bytes) -> list[tuple[int, int]]:
    cut = [message[start : start + SIZE] for start in range(0, len(message), SIZE)]
    return [(int.from_bytes(one[:4], "big"), int.from_bytes(one[4:], "big")) for one in cut]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(1, 5), st.just(1)),
        st.tuples(st.just("parts"), st.integers(1, 5), st.integers(1, 6)),
        st.tuples(st.just("take"), st.just(0), st.just(0)),
    ),
    max_size=60,
)


def drained(outbox: Outbox) -> Iterator[bytes]:
    while outbox:
        yield outbox.take()


@given(steps, st.integers(1, 6 * SIZE))
def test_every_frame_leaves_exactly_once_and_each_calls_frames_in_order(
    plan: list[tuple[str, int, int]], message_bytes: int
) -> None:
    outbox, pushed, messages = Outbox(message_bytes), dict.fromkeys(range(1, 6), 0), list[bytes]()
    for kind, call_id, count in plan:
        if kind == "take":
            messages.append(outbox.take())
            continue
        numbers = range(pushed[call_id], pushed[call_id] + count)
        pushed[call_id] += count
        if kind == "push":
            outbox.push(call_id, frame(call_id, numbers[0]))
        else:
            outbox.push_parts(call_id, iter([frame(call_id, number) for number in numbers]))
    messages.extend(drained(outbox))
    left = [one for message in messages for one in frames_in(message)]
    for call_id, count in pushed.items():
        assert [number for call, number in left if call == call_id] == list(range(count))
    assert all(len(message) < message_bytes + 2 * SIZE for message in messages)  # and a frame and a part, at most


@given(steps, st.sets(st.integers(1, 5)))
def test_a_dropped_call_sends_no_further_part_and_disturbs_no_other(
    plan: list[tuple[str, int, int]], dropped: set[int]
) -> None:
    outbox, pushed = Outbox(2 * SIZE), dict.fromkeys(range(1, 6), 0)
    for kind, call_id, count in plan:
        if kind != "take":
            parts = [frame(call_id, pushed[call_id] + n) for n in range(count)]
            pushed[call_id] += count
            outbox.push_parts(call_id, iter(parts))
    for call_id in dropped:
        outbox.drop(call_id)
    left = [one for message in drained(outbox) for one in frames_in(message)]
    for call_id, count in pushed.items():
        assert [n for call, n in left if call == call_id] == ([] if call_id in dropped else list(range(count)))


def test_large_calls_take_turns_and_small_frames_pass_them() -> None:
    outbox = Outbox(message_bytes=SIZE)
    outbox.push_parts(1, iter([frame(1, n) for n in range(3)]))
    outbox.push_parts(2, iter([frame(2, n) for n in range(3)]))
    first = frames_in(outbox.take())
    outbox.push(3, frame(3, 0))
    rest = [frames_in(message) for message in drained(outbox)]
    assert first == [(1, 0)]
    assert rest[0] == [(3, 0), (2, 0)]  # the small frame first, and still one part, so that neither starves
    assert [one for message in rest[1:] for one in message] == [(1, 1), (2, 1), (1, 2), (2, 2)]


def test_a_frame_pushed_after_parts_of_its_call_waits_for_them() -> None:
    outbox = Outbox(message_bytes=SIZE)
    outbox.push_parts(1, iter([frame(1, 0), frame(1, 1)]))
    outbox.push(1, frame(1, 2))
    assert [n for message in drained(outbox) for _, n in frames_in(message)] == [0, 1, 2]


@given(st.binary(max_size=200), st.integers(1, 50))
def test_a_payload_cut_in_parts_is_put_together_again(payload: bytes, part_bytes: int) -> None:
    reassembly = Reassembly(len(payload), "a payload")
    parts = list(parts_of(payload, part_bytes))
    for part, _ in parts:
        reassembly.add(bytes(part))
    assert reassembly.whole() == payload
    assert [last for _, last in parts] == [False] * (len(parts) - 1) + [True]


@given(st.lists(st.binary(max_size=20), max_size=20), st.integers(0, 60))
def test_a_reassembly_never_holds_more_than_its_limit(parts: list[bytes], limit_bytes: int) -> None:
    reassembly = Reassembly(limit_bytes, "a payload")
    try:
        for part in parts:
            reassembly.add(part)
    except PayloadTooLarge as error:
        assert str(limit_bytes) in error.message
        assert sum(map(len, parts)) > limit_bytes
    assert len(reassembly.whole()) == reassembly.size_bytes <= limit_bytes


def busy(bound_s: float = 0.002) -> WhileUnanswered:
    rule = WhileUnanswered(bound_s, 2)
    for n in range(100):
        rule.came(n * 0.0001)
    return rule


@given(st.integers(0, 2), st.floats(0, 10))
def test_with_few_calls_open_nothing_waits(in_flight: int, now_s: float) -> None:
    assert busy().hold_s(now_s, now_s, 1, in_flight) <= 0


@given(st.integers(1, 100), st.integers(0, 100))
def test_frames_wait_only_while_the_peer_has_something_of_ours(waiting: int, elsewhere: int) -> None:
    hold_s = busy().hold_s(1.0, 1.0, waiting, waiting + elsewhere)
    assert (hold_s > 0) == (elsewhere > 0 and waiting + elsewhere > 2)


@given(st.floats(0, 1), st.integers(1, 10), st.integers(0, 100))
def test_no_frame_waits_longer_than_the_bound(waited_s: float, waiting: int, in_flight: int) -> None:
    assert waited_s + max(0.0, busy().hold_s(1.0 + waited_s, 1.0, waiting, in_flight)) <= max(0.002, waited_s) + 1e-9


def test_rare_frames_do_not_wait_for_each_other_but_traffic_that_returns_gathers() -> None:
    rule = busy()
    assert rule.hold_s(1, 1, 1, 50) > 0
    for n in range(20):
        rule.came(1 + n * 0.1)
    assert rule.hold_s(3, 3, 1, 50) == 0
    for n in range(20):
        rule.came(3 + n * 0.0005)
    assert rule.hold_s(3.01, 3.01, 1, 50) > 0


class Wire:
    """Takes messages; a write ends when it is let."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.free = asyncio.Event()
        self.free.set()
        self.in_flight = 0

    async def write(self, message: bytes) -> None:
        self.messages.append(message)
        await self.free.wait()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_frames_of_one_loop_turn_and_of_a_write_in_progress_leave_together() -> None:
    wire = Wire()
    writer = FrameWriter(wire.write, AtOnce(), lambda: 0)
    async with asyncio.TaskGroup() as group:
        run = group.create_task(writer.run())
        await settle()
        wire.free.clear()
        writer.push(1, b"a")
        writer.push(2, b"b")
        await settle()
        writer.push(3, b"c")
        writer.push(4, b"d")
        await settle()
        assert wire.messages == [b"ab"]
        wire.free.set()
        await writer.flush()
        assert wire.messages == [b"ab", b"cd"]
        run.cancel()


async def test_held_frames_leave_when_the_last_answer_comes() -> None:
    wire = Wire()
    writer = FrameWriter(wire.write, busy(60.0), lambda: wire.in_flight)
    async with asyncio.TaskGroup() as group:
        run = group.create_task(writer.run())
        wire.in_flight = 3
        for call in (b"a", b"b", b"c"):
            writer.push(1, call)
        await settle()
        assert wire.messages == [b"abc"]
        wire.in_flight = 5
        writer.push(1, b"d")
        writer.push(1, b"e")
        await settle()
        wire.in_flight = 4
        writer.answered()
        await settle()
        assert wire.messages == [b"abc"]
        wire.in_flight = 2
        writer.answered()
        await settle()
        assert wire.messages == [b"abc", b"de"]
        run.cancel()


async def test_held_frames_leave_when_the_bound_has_passed() -> None:
    wire = Wire()
    writer = FrameWriter(wire.write, busy(0.02), lambda: 9)
    async with asyncio.TaskGroup() as group, asyncio.timeout(5):
        run = group.create_task(writer.run())
        writer.push(1, b"a")
        await writer.flush()
        assert wire.messages == [b"a"]
        run.cancel()


async def test_parts_of_a_large_call_are_not_held() -> None:
    wire = Wire()
    writer = FrameWriter(wire.write, busy(60.0), lambda: 9)
    async with asyncio.TaskGroup() as group, asyncio.timeout(5):
        run = group.create_task(writer.run())
        writer.push_parts(1, iter([b"x" * 600_000] * 4))
        await writer.flush()
        assert [len(message) for message in wire.messages] == [600_000] * 4
        run.cancel()


async def test_a_flush_ends_with_a_writer_that_failed() -> None:
    async def refuse(_: bytes) -> None:
        raise ConnectionError

    writer = FrameWriter(refuse, AtOnce(), lambda: 0)
    writer.push(1, b"a")
    with pytest.raises(ConnectionError):
        await writer.run()
    async with asyncio.timeout(1):
        await writer.flush()
