"""Renewed certificates on the wire: new connections show and see the new one, what is open goes on."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from runtime.certificates import NodeCertificate
from runtime.channel import RenewedChannel, inner_channel
from runtime.errors import Unavailable
from runtime.identity import Authority, NodeIdentity, Role, public_key_of
from runtime.serving import Listen, serving
from runtime.status import error_of
from tests.support.forwarder import forwarder_to
from tests.support.waiting import PATIENCE_S, eventually

SERVICE = "test.Shown"
DAY_S = 86_400.0
Context = grpc.aio.ServicerContext[Any, Any]


async def _shown(_: bytes, context: Context) -> bytes:
    """The certificate that the caller shows."""
    return bytes(next(iter(context.auth_context()["x509_pem_cert"])))


async def _echo(requests: AsyncIterator[bytes], context: Context) -> None:
    async for request in requests:
        await context.write(request)


def _register(server: grpc.aio.Server) -> None:
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Shown": grpc.unary_unary_rpc_method_handler(_shown),
        "Echo": grpc.stream_stream_rpc_method_handler(_echo),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


@dataclass(slots=True)
class Hop:
    """A worker that serves and a gateway that calls it."""

    authority: Authority
    worker: NodeIdentity
    gateway: NodeIdentity
    port: int

    def renew(self, identity: NodeIdentity, *, begins_s: float = 0.0, lifetime_s: float = 90 * DAY_S) -> NodeCertificate:
        key = public_key_of(identity.tls_key_pem)
        made = self.authority.certify(key, identity.certificate.peer, ["localhost"], time.time() + begins_s, lifetime_s)
        identity.current.certificate = made
        return made

    def channel(self, port: int = 0) -> RenewedChannel:
        channel = inner_channel(f"127.0.0.1:{port or self.port}", self.gateway, Role.WORKER)
        assert isinstance(channel, RenewedChannel)
        return channel


@pytest.fixture
async def hop(tmp_path: Path) -> AsyncIterator[Hop]:
    authority = Authority.open(tmp_path / "ca")
    worker, gateway = authority.enrol(tmp_path / "w", Role.WORKER), authority.enrol(tmp_path / "g", Role.GATEWAY)
    async with serving([Listen("127.0.0.1", 0, worker)], [_register], [], drain_grace_s=0.1) as running:
        yield Hop(authority, worker, gateway, running.ports[0])


async def _asked(channel: grpc.aio.Channel) -> bytes:
    shown: Any = channel.unary_unary(f"/{SERVICE}/Shown")
    return bytes(await shown(b"", timeout=PATIENCE_S))


async def _asked_until_refused(channel: grpc.aio.Channel) -> None:
    """A connection that was cut is used until that is noticed."""
    while True:
        await _asked(channel)


def _one_line(pem: bytes) -> bytes:
    return b"".join(pem.split())


async def _presented(hop: Hop) -> bytes:
    """The certificate that the server shows to who connects now, DER."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(hop.gateway.files.certificate, hop.gateway.files.key)
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection("127.0.0.1", hop.port, ssl=context)
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return bytes(der)


async def test_a_running_server_shows_its_new_certificate_to_new_connections(hop: Hop) -> None:
    async with hop.channel() as channel:
        echo: Any = channel.stream_stream(f"/{SERVICE}/Echo")()
        await echo.write(b"before")
        assert await echo.read() == b"before"
        first = await _presented(hop)
        assert first == hop.worker.certificate.der
        for _ in range(3):
            renewed = hop.renew(hop.worker)
            assert await _presented(hop) == renewed.der != first
        await echo.write(b"after")
        assert await echo.read() == b"after"


async def test_a_server_whose_certificate_had_expired_is_believed_again_once_it_is_renewed(hop: Hop) -> None:
    hop.renew(hop.worker, begins_s=-2 * DAY_S, lifetime_s=DAY_S)
    async with hop.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await channel.unary_unary(f"/{SERVICE}/Shown")(b"", timeout=PATIENCE_S)
        assert isinstance(error_of(failure.value), Unavailable)
        hop.renew(hop.worker)
        await channel.unary_unary(f"/{SERVICE}/Shown")(b"", timeout=PATIENCE_S, wait_for_ready=True)


async def test_calls_begin_with_the_newest_certificate_and_streams_go_on_with_theirs(hop: Hop) -> None:
    async with hop.channel() as channel:
        shown: Any = channel.unary_unary(f"/{SERVICE}/Shown")
        echo: Any = channel.stream_stream(f"/{SERVICE}/Echo")()
        await echo.write(b"before")
        assert await echo.read() == b"before"
        assert _one_line(await shown(b"")) == _one_line(hop.gateway.certificate_pem)
        for _ in range(3):
            renewed = hop.renew(hop.gateway)
            assert _one_line(await shown(b"")) == _one_line(renewed.pem)
        await echo.write(b"after")
        assert await echo.read() == b"after"
        assert len(channel.left) == 1  # the one with the stream; those without calls are closed
        await echo.done_writing()
        assert await echo.read() is grpc.aio.EOF
        await eventually(lambda: not channel.left)


async def test_closing_ends_what_is_open_on_every_channel(hop: Hop) -> None:
    async with AsyncExitStack() as stack:
        channel = hop.channel()
        stack.push_async_callback(channel.close)
        calls: list[Any] = []
        for _ in range(3):
            call: Any = channel.stream_stream(f"/{SERVICE}/Echo")()
            await call.write(b"x")
            assert await call.read() == b"x"
            calls.append(call)
            hop.renew(hop.gateway)
    async with asyncio.timeout(PATIENCE_S):
        for call in calls:
            assert await call.code() is grpc.StatusCode.CANCELLED
    assert not channel.left


async def test_a_certificate_that_expires_ends_no_connection_and_allows_no_new_one(hop: Hop) -> None:
    """TLS looks at certificates when a connection begins. What the registry revokes is cut all the same (test_revocations)."""
    async with forwarder_to(hop.port) as wire:
        hop.renew(hop.gateway, lifetime_s=2.0)
        async with hop.channel(wire.port) as channel:
            await _asked(channel)
            ended_s = hop.gateway.certificate.expires_wall_s + 1.0
            while time.time() < ended_s:  # BoringSSL reads the machine's clock, and no other
                await asyncio.sleep(0.05)
            await _asked(channel)
            await wire.cut()
            await wire.mend()
            with pytest.raises(grpc.aio.AioRpcError) as failure:
                await _asked_until_refused(channel)
            assert isinstance(error_of(failure.value), Unavailable)
            renewed = hop.renew(hop.gateway)
            assert _one_line(await _asked(channel)) == _one_line(renewed.pem)


async def test_handshakes_while_certificates_change(hop: Hop) -> None:
    """The certificate is fetched on threads of gRPC's."""

    async def call() -> None:
        async with hop.channel() as channel:
            await _asked(channel)

    for _ in range(10):
        await asyncio.gather(*(call() for _ in range(20)))
        hop.renew(hop.worker)
        hop.renew(hop.gateway)
