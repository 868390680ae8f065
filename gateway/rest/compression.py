"""Bodies that come compressed: unpacked, up to a bound. A bomb costs what the bound allows, and no more.

Large ones are unpacked on a thread, a few at a time: zlib lets go of the interpreter while it works.
"""

from __future__ import annotations

import asyncio
import zlib

from gateway.rest.errors import BodyTooLarge, RequestRefused

_AT_ONCE = 2
_HERE_BYTES = 4 * 1024
"""What is packed into less is unpacked at once: a thread costs more. Deflate packs 1032 to 1 at most: 4 MiB, some 8 ms."""

_NOTHING = ("", "identity")
_WINDOWS = {"gzip": zlib.MAX_WBITS | 16, "x-gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}
"""`deflate` means zlib's format (RFC 9110, 8.4.1.2); some send it bare."""


class Unpacking:
    """Belongs to one event loop."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._places = max_bytes, asyncio.Semaphore(_AT_ONCE)

    async def unpacked(self, body: memoryview, encoding: str) -> memoryview:
        """The body as it was before it was packed. Raises RequestRefused, BodyTooLarge."""
        name = encoding.strip().lower()
        if name in _NOTHING or not body:
            return body
        if name not in _WINDOWS:
            raise RequestRefused(f"content-encoding {name[:40]!r} is not known here; send gzip, deflate, or none")
        if len(body) <= _HERE_BYTES:
            return memoryview(unpack(body, name, self._max_bytes))
        async with self._places:
            return memoryview(await asyncio.to_thread(unpack, body, name, self._max_bytes))


def unpack(body: memoryview, name: str, max_bytes: int) -> bytes:
    """Raises RequestRefused, BodyTooLarge."""
    try:
        return _inflated(body, _WINDOWS[name], max_bytes)
    except zlib.error as error:
        if name == "deflate":
            try:
                return _inflated(body, -zlib.MAX_WBITS, max_bytes)
            except zlib.error:
                pass
        raise RequestRefused(
            f"the body is no {name} data, as its content-encoding says ({error}); send it so, or plain"
        ) from None


def _inflated(body: memoryview, window: int, max_bytes: int) -> bytes:
    machine = zlib.decompressobj(window)
    data = machine.decompress(body, max_bytes + 1)
    if len(data) > max_bytes:
        raise BodyTooLarge(f"the body unpacks to more than {max_bytes} bytes; send less at once")
    if not machine.eof:
        raise RequestRefused("the packed body ends early; send all of it")
    if machine.unused_data:
        raise RequestRefused(f"{len(machine.unused_data)} bytes follow the packed body; send it alone")
    return data
