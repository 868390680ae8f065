"""Messages and tensors between a runner and its process: whatever comes, it is understood or refused."""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from runtime.errors import PenstockError
from worker.datatypes import DATATYPES
from worker.runner.wire import Lost, Message, Placed, Region, Word, receive, send
from worker.tensors import object_array

placed = st.builds(
    Placed,
    st.text(max_size=8),
    st.sampled_from(sorted(DATATYPES)),
    st.lists(st.integers(0, 9), max_size=3).map(tuple),
    st.integers(0, 2**40),
    st.integers(0, 2**40),
)
messages = st.builds(Message, st.sampled_from(Word), st.text(max_size=50), st.lists(placed, max_size=3).map(tuple))


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def region() -> Iterator[Region]:
    region = Region.make("test")
    yield region
    region.close()


fixture_kept = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@fixture_kept
@given(st.lists(messages, max_size=4))
def test_messages_arrive_as_they_were_sent(pair: Any, sent: list[Message]) -> None:
    for message in sent:
        send(pair[0], message)
    assert [receive(pair[1], 5) for _ in sent] == sent


@given(
    st.binary(max_size=60)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda it: json.dumps(it).encode())
)
@settings(deadline=None)
def test_what_is_no_message_is_lost_and_nothing_worse(content: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        with ours:
            ours.sendall(struct.pack("<I", len(content)) + content)
        try:
            receive(theirs, 5)
        except Lost:
            return


def test_a_message_that_claims_too_much(pair: Any) -> None:
    pair[0].sendall(b"\xff\xff\xff\xff")
    with pytest.raises(Lost, match="a message of 4294967295 bytes"):
        receive(pair[1], 5)


def test_a_message_that_does_not_come(pair: Any) -> None:
    pair[0].sendall(b"\x09\x00")
    with pytest.raises(TimeoutError):
        receive(pair[1], 0.01)


numeric = st.sampled_from([name for name in DATATYPES if name != "BYTES"])
shapes = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, tuple[Any, str]]:
    made: dict[str, tuple[Any, str]] = {}
    for name in draw(st.lists(st.text(min_size=1, max_size=3), max_size=4, unique=True)):
        if draw(st.booleans()):
            elements = draw(st.lists(st.binary(max_size=20), max_size=5))
            made[name] = object_array(elements), "BYTES"
        else:
            datatype = draw(numeric)
            made[name] = draw(arrays.arrays(DATATYPES[datatype].dtype, draw(shapes))), datatype
    return made


@fixture_kept
@given(tensors())
def test_tensors_pass_through_unchanged_also_when_the_region_grows(region: Region, sent: dict[str, tuple[Any, str]]) -> None:
    other = Region(os.dup(region.descriptor))
    for each in region.put(sent):
        array, datatype = sent[each.name]
        for copied in (True, False):
            come = other.get(each, copied=copied)
            assert (come.shape, come.dtype) == (array.shape, DATATYPES[datatype].dtype)
            assert come.tolist() == array.tolist() or np.array_equal(come, array, equal_nan=True)
        assert each.offset_bytes % 64 == 0
    other.close()


@fixture_kept
@given(placed)
def test_a_place_outside_of_the_region_is_refused(region: Region, anywhere: Placed) -> None:
    region.put({"x": (np.arange(4, dtype=np.uint8), "UINT8")})
    try:
        region.get(anywhere, copied=True)
    except (ValueError, PenstockError):
        return
    assert anywhere.offset_bytes + anywhere.size_bytes <= os.fstat(region.descriptor).st_size


def test_nobody_takes_pages_away(region: Region) -> None:
    region.put({"x": (np.zeros(100_000, np.uint8), "UINT8")})
    with pytest.raises(PermissionError):
        os.ftruncate(region.descriptor, 0)


def test_too_much_at_once_is_refused(region: Region) -> None:
    with pytest.raises(ValueError, match="can be passed at once"):
        region.staging({"x": ((2**20, 2**20), "FP32")})
