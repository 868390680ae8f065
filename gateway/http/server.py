"""The port on which Envoy brings HTTP: mutual TLS, a bound on everything, an ordered end. `http_serving(...)` until left.

Owns connections and the count of what is open; aiohttp parses. Only an Envoy of this mesh is served. Never knows what is
answered: a servicer is called as gRPC would call it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from aiohttp import web
from cryptography import x509

from gateway.http.context import HttpContext
from gateway.http.paths import Paths
from gateway.openai.errors import STATUS_HEADER, BodyTooLarge, ErrorAnswer
from runtime.certificates import ROLE_SCHEME, peer_of_certificate
from runtime.errors import Code, PenstockError
from runtime.identity import NodeIdentity, Role
from runtime.ids import NodeId
from runtime.revocations import Revocations, refusal_of
from runtime.serving import PortTaken, RoleRequired
from runtime.status import translated

BACKLOG = 4096
KEPT_S = 3600.0
"""How long a connection waits for its next request. Envoy closes idle ones first, so that none is closed under a request."""

BODY_S = 120.0
"""How long a body may take to come."""

HEADER_BYTES = 64 * 1024
_MAX_KNOWN = 1024
"""Certificates whose bearer is remembered; reading one takes longer than answering does."""


class BodySlow(PenstockError, code=Code.DEADLINE_EXCEEDED, reason="BODY_SLOW"):
    """A body comes so slowly that it is not waited for."""


class TooManyOpen(PenstockError, code=Code.UNAVAILABLE, reason="TOO_MANY_OPEN"):
    """As many requests are open as one gateway takes."""


class UrlUnknown(PenstockError, code=Code.NOT_FOUND, reason="URL_UNKNOWN"):
    """There is nothing at this path, or not by this method."""


@runtime_checkable
class TakesHttp(Protocol):
    """A servicer that takes names and bodies as they come. The others are called with the messages of their contracts."""

    async def take_http(self, method: str, names: Sequence[tuple[str, str]], body: bytes, context: Any) -> Any:
        """The answer, with `content_type` and `data`; None: it was written on the context."""
        ...


Span = Callable[[str, Mapping[str, str]], AbstractContextManager[None]]
Identify = Callable[[Mapping[str, str], HttpContext], Awaitable[object]]


class Refuse(Protocol):
    """How a failure that no servicer answered is told at a path."""

    def __call__(self, path: str, error: PenstockError) -> ErrorAnswer: ...


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What is taken at most."""

    body_bytes: int = 64 * 1024 * 1024
    open_requests: int = 4096


class HttpDoor:
    """Answers requests by servicers. Belongs to one event loop."""

    def __init__(
        self,
        paths: Paths,
        servicers: Mapping[str, Any],
        refuse: Refuse,
        limits: HttpLimits,
        revocations: Revocations | None = None,
        span: Span | None = None,
        identify: Identify | None = None,
    ) -> None:
        """`servicers` by the full names of their services. `span` is entered around each answer, where calls are traced.

        `identify` raises where nobody may ask: before a body is waited for, so that no stranger holds a place with one.
        """
        self._paths, self._servicers, self._refuse = paths, servicers, refuse
        self.limits, self._revocations, self._span, self._identify = limits, revocations, span, identify
        self._takers = {name: each for name, each in servicers.items() if isinstance(each, TakesHttp)}
        self._known: dict[bytes, tuple[NodeId, tuple[bytes, ...]]] = {}
        self.open = 0

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """One request. Raises only what ends the connection."""
        self.open += 1
        context: HttpContext | None = None
        try:
            if self.open > self.limits.open_requests:
                raise TooManyOpen(f"{self.limits.open_requests} requests are open here already; try again", retry_after_s=1.0)
            context = HttpContext(request, self._check_peer(request))
            return await self._answered(request, context)
        except web.HTTPRequestEntityTooLarge:
            return _response(self._refuse(request.path, _too_long(self.limits.body_bytes)))
        except Exception as raised:
            if context is not None and (context.begun or context.done()):
                raise asyncio.CancelledError from raised  # aiohttp closes the connection: what has left cannot be taken back
            return _response(self._refuse(request.path, translated(raised, "HTTP")))
        finally:
            self.open -= 1

    async def _answered(self, request: web.BaseRequest, context: HttpContext) -> web.StreamResponse:
        path, _, query = request.raw_path.partition("?")
        found = self._paths.find(request.method, path)
        if found is None:
            raise UrlUnknown(f"Unknown URL: {request.method} {path[:200]}")
        binding, variables = found
        if binding.body and self._identify is not None:
            await self._identify(dict(context.invocation_metadata()), context)
        body = await self._body(request) if binding.body else b""
        taker = self._takers.get(binding.service)
        if taker is not None:
            answering = taker.take_http(binding.method, binding.names(variables, query), body, context)
        else:
            message = binding.message(variables, query, request.headers.get("content-type", ""), body)
            answering = getattr(self._servicers[binding.service], binding.method)(message, context)
        if self._span is None:
            return await context.finish(await answering)
        with self._span(f"{binding.service}/{binding.method}", dict(context.invocation_metadata())):
            return await context.finish(await answering)

    async def _body(self, request: web.BaseRequest) -> bytes:
        """All of it. Raises BodySlow."""
        try:
            async with asyncio.timeout(BODY_S):
                return await request.read()
        except TimeoutError:
            raise BodySlow(f"the body had not come whole after {BODY_S:.0f} s; send it faster, or less of it") from None

    def _check_peer(self, request: web.BaseRequest) -> tuple[bytes, ...]:
        """Who is connected, by the URIs of its certificate. Raises NodeRevoked, RoleRequired unless it is an Envoy."""
        der = _certificate_of(request)
        known = self._known.get(der)
        if known is None:
            peer = peer_of_certificate(x509.load_der_x509_certificate(der))
            if peer.role is not Role.ENVOY:
                raise RoleRequired(f"a {peer.role.value} may not call this; it is for: {Role.ENVOY.value}")
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            known = self._known[der] = (peer.node_id, (f"{ROLE_SCHEME}://{peer.role.value}/{peer.node_id}".encode(),))
        node_id, uris = known
        if self._revocations is not None and node_id in self._revocations:
            raise refusal_of(node_id)
        return uris


@asynccontextmanager
async def http_serving(
    door: HttpDoor, host: str, port: int, identity: NodeIdentity, drain_grace_s: float
) -> AsyncIterator[int]:
    """Serve until left; the port bound. Leaving closes it, and waits so long for what is open. Raises PortTaken."""

    def made(parsed: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        return web.BaseRequest(parsed, payload, protocol, writer, task, loop, client_max_size=door.limits.body_bytes)

    loop = asyncio.get_running_loop()
    handler = web.Server(
        door.answer,
        request_factory=made,
        handler_cancellation=True,
        access_log=None,
        auto_decompress=False,
        keepalive_timeout=KEPT_S,
        max_field_size=HEADER_BYTES,
        max_line_size=HEADER_BYTES,
        lingering_time=0,
    )
    try:
        server = await loop.create_server(handler, host, port, backlog=BACKLOG, ssl=_Renewed(identity).context)
    except OSError as error:
        raise PortTaken(f"cannot listen on {host}:{port}: {error.strerror or error}; choose another port") from error
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.shield(handler.shutdown(drain_grace_s))


class _Renewed:
    """What is shown to whoever connects: the certificate that the identity has then."""

    def __init__(self, identity: NodeIdentity) -> None:
        self._identity, self._shown = identity, identity.certificate
        self.context = self._current = self._made()
        self.context.sni_callback = self._choose  # asked at every handshake, with or without a name

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        if self._identity.certificate is not self._shown:
            self._shown, self._current = self._identity.certificate, self._made()
        connection.context = self._current

    def _made(self) -> ssl.SSLContext:
        context, files = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), self._identity.files
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=self._identity.authority_pem.decode())
        context.load_cert_chain(files.certificate, files.key)
        context.set_alpn_protocols(["http/1.1"])
        return context


def _certificate_of(request: web.BaseRequest) -> bytes:
    connection = None if request.transport is None else request.transport.get_extra_info("ssl_object")
    der = None if connection is None else connection.getpeercert(binary_form=True)
    if der is None:
        raise RoleRequired("this port takes an Envoy of this mesh alone; show its certificate")
    return bytes(der)


def _too_long(limit_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is larger than the {limit_bytes / (1024 * 1024):g} MiB allowed.")


def _response(refusal: ErrorAnswer) -> web.Response:
    headers = {name: value for name, value in refusal.headers if name != STATUS_HEADER}
    return web.Response(status=refusal.status, headers=headers, body=refusal.body, content_type="application/json")
