"""multipart/form-data → its parts. The only module that knows `python_multipart`, whose parser does the work.

Decides how many parts and how much of a header are taken. A part's bytes are views, so a file is held twice at most: in the
request and here. Never decides what a part means. Source: RFC 7578.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from gateway.openai.errors import RequestRefused

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

MAX_PARTS = 16
_STEP_BYTES = 64 * 1024
"""Parsed before others get their turn: 20 ms, where every byte looks like the beginning of a boundary."""

_PLAIN = ("", "7bit", "8bit", "binary")


@dataclass(slots=True)
class Part:
    """One field of the form; a file has a name of its own."""

    name: str
    filename: str | None = None
    views: list[memoryview] = field(default_factory=list)

    @property
    def size_bytes(self) -> int:
        return sum(len(view) for view in self.views)

    def text(self, at_most: int) -> str:
        """Raises RequestRefused for what is longer, or no UTF-8."""
        if self.size_bytes > at_most:
            raise RequestRefused(
                f"{self.name!r} has {self.size_bytes} bytes; at most {at_most} are taken", param=self.name, fault="too_long"
            )
        try:
            return b"".join(self.views).decode()
        except UnicodeDecodeError:
            raise RequestRefused(f"{self.name!r} is no UTF-8; send text", param=self.name) from None


async def parts_of(content_type: str, body: bytes) -> Mapping[str, Part]:
    """The parts by name, where each name comes once. Raises RequestRefused."""
    form = _Form()
    try:
        parser = MultipartParser(_boundary(content_type), form.callbacks(), max_header_count=8, max_header_size=4096)
        for start in range(0, len(body), _STEP_BYTES):
            parser.write(body[start : start + _STEP_BYTES])
            await asyncio.sleep(0)
        parser.finalize()
    except FormParserError as error:
        raise _malformed(f"the body is no multipart/form-data: {str(error)[:200]}") from None
    if not form.ended:
        raise _malformed("the body ends before the form does; send all of it")
    return form.parts


class _Form:
    """What the parser has told so far."""

    def __init__(self) -> None:
        self.parts: dict[str, Part] = {}
        self.ended = False
        self._part = Part("")
        self._headers: dict[str, bytes] = {}
        self._header, self._value = bytearray(), bytearray()

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._name,
            "on_part_data": self._data,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._headers.clear()

    def _end_header(self) -> None:
        self._headers[self._header.decode("latin-1").lower()] = bytes(self._value).strip()
        self._header.clear()
        self._value.clear()

    def _name(self) -> None:
        encoding = self._headers.get("content-transfer-encoding", b"").decode("latin-1").lower()
        if encoding not in _PLAIN:
            raise _malformed(f"a part is encoded as {encoding[:40]!r}; send its bytes as they are")
        _, options = parse_options_header(self._headers.get("content-disposition", b""))
        name, filename = options.get(b"name"), options.get(b"filename")
        if not name:
            raise _malformed("a part has no name; its content-disposition needs one")
        self._part = Part(name.decode("utf-8", "replace"), None if filename is None else filename.decode("utf-8", "replace"))
        if self._part.name in self.parts:
            raise RequestRefused(f"{self._part.name[:80]!r} comes twice; send it once", param=self._part.name[:80])
        if len(self.parts) >= MAX_PARTS:
            raise _malformed(f"the form has more than {MAX_PARTS} parts; send fewer")
        self.parts[self._part.name] = self._part

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._part.views.append(memoryview(data)[start:end])

    def _end(self) -> None:
        self.ended = True


def _boundary(content_type: str) -> bytes:
    # The parser takes letters of Latin-1 alone.
    kind, options = parse_options_header(content_type[:1024]) if content_type.isascii() else (b"", {})
    if kind != b"multipart/form-data":
        raise _malformed(f"the content type is {content_type[:80]!r}; send multipart/form-data with the parts file and purpose")
    boundary = options.get(b"boundary")
    if not boundary:
        raise _malformed("the content type names no boundary; let your HTTP client write it")
    return boundary


def _malformed(message: str) -> RequestRefused:
    return RequestRefused(message, fault="invalid_form")
