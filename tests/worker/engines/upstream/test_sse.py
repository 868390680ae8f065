"""Server-sent events out of bytes: the same events however the bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.engines.upstream.sse import EventReader, EventTooLarge

TEXT = st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), max_size=20)
LINE_ENDS = st.sampled_from(["\n", "\r\n", "\r"])


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A stream with comments and other fields in it, and the events that it holds."""
    written, events = [], []
    for _ in range(draw(st.integers(0, 5))):
        end = draw(LINE_ENDS)
        lines = draw(st.lists(TEXT, min_size=1, max_size=3))
        noise = draw(st.lists(st.sampled_from([": a comment", "event: message", "id: 7", "retry: 100", "nothing"]), max_size=2))
        written += [f"{line}{end}" for line in noise]
        written += [f"data: {line}{end}" for line in lines]
        written.append(end)
        events.append("\n".join(lines).encode())
    return "".join(written).encode(), events


def cut(content: bytes, places: list[int]) -> list[bytes]:
    ends = sorted(place % (len(content) + 1) for place in places)
    return [content[start:end] for start, end in zip([0, *ends], [*ends, len(content)], strict=True)]


@settings(deadline=None)
@given(streams(), st.lists(st.integers(0, 10_000), max_size=8))
def test_any_cutting_gives_the_same_events(stream: tuple[bytes, list[bytes]], places: list[int]) -> None:
    content, events = stream
    reader = EventReader()
    assert [event for chunk in cut(content, places) for event in reader.feed(chunk)] == events


@settings(deadline=None)
@given(streams())
def test_byte_by_byte_as_at_once(stream: tuple[bytes, list[bytes]]) -> None:
    content, events = stream
    reader = EventReader()
    assert [event for byte in content for event in reader.feed(bytes([byte]))] == events


@settings(deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(0, 10_000), max_size=5))
def test_whatever_comes_is_cut_alike_and_raises_nothing(content: bytes, places: list[int]) -> None:
    whole, pieces = EventReader(), EventReader()
    assert [event for chunk in cut(content, places) for event in pieces.feed(chunk)] == whole.feed(content)


def test_a_byte_order_mark_an_event_without_data_and_one_without_an_end() -> None:
    reader = EventReader()
    assert reader.feed(b"\xef\xbb\xbfdata:one\n\nevent: ping\n\ndata\n\ndata: cut") == [b"one", b""]


def test_one_space_belongs_to_the_field() -> None:
    assert EventReader().feed(b"data:  two\n\n") == [b" two"]


@pytest.mark.parametrize("content", [b"data: 12345678901", b"data: 123456\ndata: 123456\n", b": " + b"x" * 20 + b"\n"])
def test_lines_and_events_have_a_bound(content: bytes) -> None:
    with pytest.raises(EventTooLarge, match="more than 10 bytes"):
        EventReader(max_event_bytes=10).feed(content)
    bytewise = EventReader(max_event_bytes=10)
    with pytest.raises(EventTooLarge):
        all(bytewise.feed(bytes([byte])) == [] for byte in content)
