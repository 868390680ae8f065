"""HTTP/2 as no client writes it: frames are made one by one, and nothing that is wrong with them is put right."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from hpack import Decoder, Encoder, HPACKError
from hyperframe.exceptions import HyperframeError
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from gateway.xds.types import Endpoint

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PATIENCE_S = 30.0
FRAME_BYTES = 16_384
"""The largest that a receiver has to take. Source: RFC 9113, section 4.2."""

Pairs = Sequence[tuple[bytes, bytes]]


def request_head(path: str = "/v1/models", *more: tuple[bytes, bytes], method: str = "GET") -> list[tuple[bytes, bytes]]:
    """Pseudo headers and these, in this order."""
    pseudo = [(":method", method), (":path", path), (":scheme", "http"), (":authority", "edge")]
    return [*((name.encode(), value.encode()) for name, value in pseudo), *more]


def headers_frame(stream: int, block: bytes, *flags: str) -> bytes:
    return HeadersFrame(stream, data=block, flags=flags or ("END_HEADERS", "END_STREAM")).serialize()


def data_frame(stream: int, data: bytes, *flags: str) -> bytes:
    return DataFrame(stream, data=data, flags=flags).serialize()


def continuation_frame(stream: int, block: bytes, *flags: str) -> bytes:
    return ContinuationFrame(stream, data=block, flags=flags).serialize()


def reset_frame(stream: int) -> bytes:
    return RstStreamFrame(stream, error_code=8).serialize()


def settings_frame(**settings: int) -> bytes:
    return SettingsFrame(
        0, settings={getattr(SettingsFrame, name.upper()): value for name, value in settings.items()}
    ).serialize()


def ping_frame(content: bytes = b"12345678") -> bytes:
    return PingFrame(0, opaque_data=content).serialize()


def window_frame(stream: int, increment: int) -> bytes:
    return WindowUpdateFrame(stream, window_increment=increment).serialize()


def block_of(pairs: Pairs) -> bytes:
    """Headers by their letters, with nothing put into anybody's table."""
    return b"".join(b"\x10" + _text(name) + _text(value) for name, value in pairs)


def indexed_block_of(pairs: Pairs) -> bytes:
    """As usual clients write them."""
    return Encoder().encode(list(pairs))


def integer(value: int, prefix_bits: int, flags: int = 0) -> bytes:
    """Source: RFC 7541, section 5.1."""
    most = (1 << prefix_bits) - 1
    if value < most:
        return bytes([flags | value])
    written, rest = [flags | most], value - most
    while rest >= 128:
        written.append(rest % 128 + 128)
        rest //= 128
    return bytes([*written, rest])


def _text(text: bytes) -> bytes:
    return integer(len(text), 7) + text


@dataclass(slots=True)
class Http2Connection:
    """One connection. Settings and pings of the other side are answered; else only what it is told goes out."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    statuses: dict[int, int] = field(default_factory=dict)
    """By stream; those of gRPC, which are in the trailers, are in `grpc_statuses`."""
    grpc_statuses: dict[int, int] = field(default_factory=dict)
    resets: dict[int, int] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    goaway: bool = False
    closed: bool = False
    _decoder: Decoder = field(default_factory=Decoder)
    _left: bytes = b""
    _block: bytes = b""

    async def send(self, *parts: bytes) -> None:
        """Write them; an end that the other side made meanwhile is no error."""
        with suppress(OSError):
            for part in parts:
                self.writer.write(part)
                await self.writer.drain()

    async def read(self, within_s: float = PATIENCE_S) -> bool:
        """Take what comes next; False where nothing does, or the connection ended."""
        try:
            async with asyncio.timeout(within_s):
                part = await self.reader.read(65_536)
        except TimeoutError:
            return False
        except OSError:
            part = b""
        if not part:
            self.closed = True
            return False
        await self._take(part)
        return True

    async def outcome(self, stream: int = 1) -> int | None:
        """The status of this stream's answer; None where there is none, because the stream was reset, or all of it ended."""
        async with asyncio.timeout(PATIENCE_S):
            while not (stream in self.ended or stream in self.resets or self.goaway or self.closed):
                await self.read()
        return self.statuses.get(stream)

    async def until_closed(self) -> None:
        """Return once the other side has ended it. Raises TimeoutError."""
        async with asyncio.timeout(PATIENCE_S):
            while not self.closed:
                await self.read()

    async def _take(self, part: bytes) -> None:
        self._left += part
        while len(self._left) >= 9:
            frame, length = Frame.parse_frame_header(memoryview(self._left)[:9])
            if len(self._left) < 9 + length:
                return
            body, self._left = self._left[9 : 9 + length], self._left[9 + length :]
            with suppress(HyperframeError, HPACKError):
                frame.parse_body(memoryview(body))
                await self._meet(frame)

    async def _meet(self, frame: Frame) -> None:
        match frame:
            case SettingsFrame() if "ACK" not in frame.flags:
                await self.send(SettingsFrame(0, flags=["ACK"]).serialize())
            case PingFrame() if "ACK" not in frame.flags:
                await self.send(PingFrame(0, opaque_data=frame.opaque_data, flags=["ACK"]).serialize())
            case HeadersFrame() | ContinuationFrame():
                self._block += frame.data
                if "END_HEADERS" in frame.flags:
                    self._note(frame.stream_id)
            case RstStreamFrame():
                self.resets[frame.stream_id] = frame.error_code
            case GoAwayFrame():
                self.goaway = True
        if "END_STREAM" in frame.flags:
            self.ended.add(frame.stream_id)

    def _note(self, stream: int) -> None:
        found = {_plain(name): _plain(value) for name, value in self._decoder.decode(self._block, raw=True)}
        self._block = b""
        if ":status" in found:
            self.statuses[stream] = int(found[":status"])
        if "grpc-status" in found:
            self.grpc_statuses[stream] = int(found["grpc-status"])


def _plain(text: bytes | str) -> str:
    return text.decode("latin-1") if isinstance(text, bytes) else text


@asynccontextmanager
async def http2_connection(at: Endpoint, *, settings: bytes = b"", preface: bool = True) -> AsyncIterator[Http2Connection]:
    """Connected until left, preface and settings sent."""
    reader, writer = await asyncio.open_connection(at.host, at.port)
    connection = Http2Connection(reader, writer)
    try:
        if preface:
            await connection.send(PREFACE + (settings or settings_frame()))
        yield connection
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
