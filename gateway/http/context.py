"""One HTTP request as its servicer sees it: what gRPC's context tells and takes, of an HTTP/1.1 exchange.

Owns the response: its status and headers from the first metadata, then its body, whole or part by part. Knows nothing of what
is answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web
from google.api.httpbody_pb2 import HttpBody

from gateway.openai.errors import STATUS_HEADER

EVENTS = "text/event-stream"
_PEER_URI = "peer_uri"


class HttpContext:
    """A grpc.aio.ServicerContext as far as servicers of HttpBody use one."""

    __slots__ = ("_headers", "_held", "_peer", "_request", "_response", "_status", "_uris")

    def __init__(self, request: web.BaseRequest, peer_uris: Sequence[bytes]) -> None:
        """`peer_uris`: who is connected, by its certificate."""
        self._request, self._uris = request, peer_uris
        self._status, self._headers = 200, dict[str, str]()
        self._held: HttpBody | None = None
        self._response: web.StreamResponse | None = None
        self._peer = ""

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return tuple((name.lower(), value) for name, value in self._request.headers.items())

    def time_remaining(self) -> float | None:
        """HTTP knows no deadline."""
        return None

    def peer(self) -> str:
        address = self._request.remote or ""
        return f"ipv6:[{address}]:0" if ":" in address else f"ipv4:{address}:0"

    def peer_identities(self) -> Sequence[bytes]:
        return self._uris

    def auth_context(self) -> Mapping[str, Sequence[bytes]]:
        return {_PEER_URI: self._uris}

    def done(self) -> bool:
        """Whether whoever asked has gone."""
        transport = self._request.transport
        return transport is None or transport.is_closing()

    @property
    def begun(self) -> bool:
        """Whether something has left: the status can be changed no more."""
        return self._response is not None

    async def send_initial_metadata(self, metadata: Sequence[tuple[str, str | bytes]]) -> None:
        for name, value in metadata:
            text = value if isinstance(value, str) else value.decode("latin-1")
            if name == STATUS_HEADER:
                self._status = int(text)
            else:
                self._headers[name] = text

    async def write(self, message: HttpBody) -> None:
        """One part of the answer. One that is not of events waits for the next: an only one leaves with its length."""
        if self._response is None and self._held is None and message.content_type != EVENTS:
            self._held = message
            return
        response = self._response or await self._begin(message.content_type if self._held is None else self._held.content_type)
        if self._held is not None:
            held, self._held = self._held, None
            await response.write(held.data)
        await response.write(message.data)

    async def finish(self, answer: Any = None) -> web.StreamResponse:
        """End the answer; `answer`: all of it, of an RPC that answers once."""
        whole = self._held if answer is None else answer
        if self._response is not None:
            await self._response.write_eof()
            return self._response
        if whole is None:
            return web.Response(status=self._status, headers=self._headers)
        headers = {**self._headers, "content-type": whole.content_type}
        return web.Response(status=self._status, headers=headers, body=whole.data)

    async def _begin(self, content_type: str) -> web.StreamResponse:
        response = web.StreamResponse(status=self._status, headers={**self._headers, "content-type": content_type})
        self._response = response
        await response.prepare(self._request)
        return response
