"""HTTP/1.1 as no client writes it: bytes go out as they are, and what comes back is kept as it came."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from gateway.xds.types import Endpoint

PATIENCE_S = 30.0
"""For the first byte of an answer; a full machine may take a while."""

_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")
QUIET_S = 0.2
"""After an answer: whatever else was to come from the same bytes has come. A slow machine makes a test weaker, never red."""


@dataclass(slots=True)
class RawConnection:
    """One connection, and everything that was read from it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    received: bytes = b""
    closed: bool = False
    """The other side ended it."""

    async def send(self, *parts: bytes) -> None:
        """Write them; an end that the other side made meanwhile is no error."""
        with suppress(OSError):
            for part in parts:
                self.writer.write(part)
                await self.writer.drain()

    async def read(self, within_s: float = PATIENCE_S) -> bytes:
        """What comes next; empty where nothing does, or the connection ended."""
        try:
            async with asyncio.timeout(within_s):
                part = await self.reader.read(65_536)
        except TimeoutError:
            return b""
        except OSError:
            part = b""
        self.closed = self.closed or not part
        self.received += part
        return part

    async def answered(self, within_s: float = PATIENCE_S) -> list[int]:
        """The statuses of all answers, once it is quiet."""
        if await self.read(within_s):
            while await self.read(QUIET_S):
                pass
        return self.statuses

    async def until_closed(self, within_s: float = PATIENCE_S) -> list[int]:
        """The statuses of all answers, once the other side has ended it. Raises TimeoutError."""
        async with asyncio.timeout(within_s):
            while not self.closed:
                await self.read(within_s)
        return self.statuses

    @property
    def statuses(self) -> list[int]:
        return [int(status) for status in _STATUS.findall(self.received)]


@asynccontextmanager
async def raw_connection(at: Endpoint) -> AsyncIterator[RawConnection]:
    """Connected until left."""
    reader, writer = await asyncio.open_connection(at.host, at.port)
    connection = RawConnection(reader, writer)
    try:
        yield connection
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def exchanged(at: Endpoint, *sent: bytes) -> RawConnection:
    """All that comes back for these bytes, on a connection of their own."""
    async with raw_connection(at) as connection:
        await connection.send(*sent)
        await connection.answered()
    return connection
