"""A model behind OpenAI's API that costs next to nothing: always the same answer, whole or in 21 events.

HTTP/1.1 with kept connections, just enough of it for clients that behave. Events leave one by one, `--gap-ms` apart, as a model
makes them: whoever passes them on meets each by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from pathlib import Path
from typing import cast

import uvloop

CHUNKS = 20
"""With text; the one that says how it ended comes after them."""

_HEAD = '{"id":"chatcmpl-0","object":"chat.completion%s","created":1700000000,"model":"mock","choices":[{"index":0,'
_WHOLE = (
    _HEAD % ""
    + '"message":{"role":"assistant","content":"%s"},"finish_reason":"stop"}],'
    + '"usage":{"prompt_tokens":9,"completion_tokens":20,"total_tokens":29}}'
) % ("word " * CHUNKS).strip()
_EVENT = "data: " + _HEAD % ".chunk" + '"delta":{"content":"word "},"finish_reason":null}]}\n\n'
_LAST = "data: " + _HEAD % ".chunk" + '"delta":{},"finish_reason":"stop"}]}\n\n'
_USAGE = (
    'data: {"id":"chatcmpl-0","object":"chat.completion.chunk","created":1700000000,"model":"mock","choices":[],'
    '"usage":{"prompt_tokens":9,"completion_tokens":20,"total_tokens":29}}\n\n'
)


def _plain(body: str) -> bytes:
    raw = body.encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(raw) + raw


def _chunk(text: str) -> bytes:
    raw = text.encode()
    return b"%x\r\n%b\r\n" % (len(raw), raw)


ANSWER = _plain(_WHOLE)
BEGIN = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT, LAST, USAGE, DONE = _chunk(_EVENT), _chunk(_LAST), _chunk(_USAGE), _chunk("data: [DONE]\n\n") + b"0\r\n\r\n"
MODELS = _plain(json.dumps({"object": "list", "data": [{"id": "mock", "object": "model", "created": 0, "owned_by": "us"}]}))


class Connection(asyncio.Protocol):
    """Answers the requests of one connection, one after another."""

    def __init__(self, gap_s: float) -> None:
        self._gap_s, self._loop = gap_s, asyncio.get_running_loop()
        self._buffer = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            at = head.find(b"content-length:")
            size = 0 if at < 0 else int(head[at + 15 :].split(b"\r\n", 1)[0])
            if len(self._buffer) < end + 4 + size:
                return
            body, self._buffer = self._buffer[end + 4 : end + 4 + size], self._buffer[end + 4 + size :]
            self._answer(head, body)

    def _answer(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"get"):
            self._write(MODELS)
        elif b'"stream":true' in body.replace(b" ", b""):
            self._write(BEGIN)
            self._next(CHUNKS, b"include_usage" in body)
        else:
            self._write(ANSWER)

    def _next(self, left: int, usage: bool) -> None:
        if left:
            self._write(EVENT)
            self._loop.call_later(self._gap_s, self._next, left - 1, usage)
        else:
            self._write(LAST + (USAGE if usage else b"") + DONE)

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)


async def serve(gap_s: float, ready_file: Path) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Connection(gap_s), "127.0.0.1", 0, backlog=4096)
    draft = ready_file.with_suffix(".draft")
    draft.write_text(json.dumps({"port": server.sockets[0].getsockname()[1]}))
    draft.rename(ready_file)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ready-file", type=Path, required=True)
    parser.add_argument("--gap-ms", type=float, default=2.0)
    arguments = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(arguments.gap_ms / 1000, arguments.ready_file))


if __name__ == "__main__":
    main()
