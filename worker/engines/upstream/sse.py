"""Server-sent events, out of bytes as they come. Pure: bytes in, the data of whole events out.

Decides where a line and an event end, and how long they may be. Never decodes: what stands in an event is its reader's. Names,
ids and retry times of events are passed over; nothing that streams text needs them. An event that no blank line ended is none.
Source: WHATWG HTML, section 9.2.6, interpreting an event stream.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from runtime.errors import Code, PenstockError

MAX_EVENT_BYTES = 1024 * 1024
"""Of one event, and so of one line of it."""

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class EventTooLarge(PenstockError, code=Code.INTERNAL, reason="UPSTREAM_EVENT_TOO_LARGE"):
    """A line or an event goes on for longer than is held in memory."""


class EventReader:
    """One stream's reader. Holds at most one event that is not whole yet."""

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_bytes = max_event_bytes
        self._line: list[bytes] = []  # parts of the line that is not whole yet
        self._line_bytes = 0
        self._data: list[bytes] = []  # data lines of the event that is not whole yet
        self._data_bytes = 0
        self._after_cr = False
        self._first = True

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the events that end within this chunk. Raises EventTooLarge."""
        between = not (self._line or self._data or self._after_cr)
        if between and len(chunk) <= self._max_bytes and (events := _simple(chunk)) is not None:
            self._first = False
            return events
        return [event for line in self._lines(chunk) if (event := self._take(line)) is not None]

    def _lines(self, chunk: bytes) -> Iterator[bytes]:
        if self._after_cr and chunk:
            self._after_cr = False
            chunk = chunk.removeprefix(b"\n")  # the other half of a CRLF that was cut in two
        start = 0
        for end in _LINE_END.finditer(chunk):
            yield self._whole(chunk[start : end.start()])
            start = end.end()
        if start:
            self._after_cr = start == len(chunk) and chunk.endswith(b"\r")
        if start < len(chunk):
            self._hold(chunk[start:])

    def _hold(self, part: bytes) -> None:
        self._line.append(part)
        self._line_bytes += len(part)
        self._check(self._line_bytes)

    def _whole(self, rest: bytes) -> bytes:
        line = rest
        if self._line:
            line = b"".join((*self._line, rest))
            self._line.clear()
            self._line_bytes = 0
        self._check(len(line))
        if self._first:
            self._first = False
            line = line.removeprefix(_BYTE_ORDER_MARK)
        return line

    def _take(self, line: bytes) -> bytes | None:
        if not line:
            event = b"\n".join(self._data) if self._data else None
            self._data.clear()
            self._data_bytes = 0
            return event
        name, _, value = line.partition(b":")
        if name == b"data":  # a comment has no name
            value = value.removeprefix(b" ")
            self._data.append(value)
            self._data_bytes += len(value) + 1
            self._check(self._data_bytes)
        return None

    def _check(self, size_bytes: int) -> None:
        if size_bytes > self._max_bytes:
            raise EventTooLarge(
                f"the upstream sent an event of more than {self._max_bytes} bytes; it is not read further: report it there"
            )


def _simple(chunk: bytes) -> list[bytes] | None:
    """The data of whole events of one plain line each, which is how nearly all upstreams write them; None: they are not."""
    if not chunk.endswith(b"\n\n") or b"\r" in chunk:
        return None
    events = []
    for event in chunk[:-2].split(b"\n\n"):
        if not event.startswith(b"data: ") or b"\n" in event:
            return None
        events.append(event[6:])
    return events
