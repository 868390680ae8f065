from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.gathering import AtOnce, FlightPeak, FrameWriter


def busy(bound_s: float = 0.002) -> FlightPeak:
    rule = FlightPeak(bound_s, 2)
    for n in range(100):
        rule.came(n * 0.0001)
    return rule


@given(st.integers(0, 2), st.floats(0, 10))
def test_with_few_calls_open_nothing_waits(in_flight: int, now_s: float) -> None:
    assert busy().hold_s(now_s, now_s, 1, in_flight) <= 0


@given(st.integers(1, 100), st.integers(0, 100))
def test_frames_wait_only_while_some_of_the_open_calls_are_elsewhere(waiting: int, elsewhere: int) -> None:
    hold_s = busy().hold_s(1.0, 1.0, waiting, waiting + elsewhere)
    assert (hold_s > 0) == (elsewhere > 0 and waiting + elsewhere > 2)


def test_a_crowd_is_waited_for_again_until_it_is_forgotten() -> None:
    rule = busy()
    assert rule.hold_s(1, 1, 1, 20) > 0
    assert rule.hold_s(1, 1, 8, 8) > 0
    for _ in range(10):
        rule.wrote()
    assert rule.hold_s(1, 1, 8, 8) == 0


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


async def test_held_frames_leave_when_all_have_gathered() -> None:
    wire = Wire()
    writer = FrameWriter(wire.write, busy(60.0), lambda: wire.in_flight)
    async with asyncio.TaskGroup() as group:
        run = group.create_task(writer.run())
        wire.in_flight = 3
        for call in (b"a", b"b"):
            writer.push(1, call)
        await settle()
        assert wire.messages == []
        writer.push(1, b"c")
        await settle()
        assert wire.messages == [b"abc"]
        run.cancel()


async def test_held_frames_leave_when_an_answer_leaves_few_calls_open() -> None:
    wire = Wire()
    writer = FrameWriter(wire.write, busy(60.0), lambda: wire.in_flight)
    async with asyncio.TaskGroup() as group:
        run = group.create_task(writer.run())
        wire.in_flight = 4
        writer.push(1, b"a")
        await settle()
        wire.in_flight = 3
        writer.answered()
        await settle()
        assert wire.messages == []
        wire.in_flight = 2
        writer.answered()
        await settle()
        assert wire.messages == [b"a"]
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
