"""A file's bytes, as they come, cut into lines; those without a byte are counted and left out. Holds one bounded line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from scheduler.jobs.batches.types import MAX_LINE_BYTES

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NOTHING = re.compile(rb"\n+")


class LineTooLong(Exception):
    """A line has more bytes than any may."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(frozen=True, slots=True)
class RawLine:
    number: int
    """From 1; the empty ones counted."""
    raw: bytes = field(repr=False)
    ends_at: int
    """How many bytes of the file lie before the next line."""

    @property
    def is_empty(self) -> bool:
        return not self.raw.strip()


class LineCutter:
    """Begins anywhere: after so many lines, which were so many bytes."""

    def __init__(self, lines: int = 0, offset: int = 0) -> None:
        self._lines, self._offset = lines, offset
        self._held = bytearray()

    def cut(self, data: bytes) -> Iterator[RawLine]:
        """The lines that end in these bytes. Raises LineTooLong."""
        begin = 0
        while True:
            begin = self._left_out(data, begin)
            if (end := data.find(b"\n", begin)) < 0:
                break
            self._held += data[begin:end]
            yield self._line(1)
            begin = end + 1
        self._held += data[begin:]
        if len(self._held) > MAX_LINE_BYTES:
            raise LineTooLong(self._lines + 1)

    def end(self) -> Iterator[RawLine]:
        """The last line, where nothing ended it."""
        if self._held:
            yield self._line(0)

    def _left_out(self, data: bytes, begin: int) -> int:
        """Where the next line with a byte begins: a file of nothing but line ends is millions of lines."""
        nothing = None if self._held else _NOTHING.match(data, begin)
        if nothing is None:
            return begin
        self._lines += nothing.end() - begin
        self._offset += nothing.end() - begin
        return nothing.end()

    def _line(self, ending: int) -> RawLine:
        if len(self._held) > MAX_LINE_BYTES:
            raise LineTooLong(self._lines + 1)
        raw = bytes(self._held)
        self._held.clear()
        self._lines += 1
        self._offset += len(raw) + ending
        return RawLine(self._lines, raw.removeprefix(_BYTE_ORDER_MARK) if self._lines == 1 else raw, self._offset)
