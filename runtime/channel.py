"""One way to call: channels of an inner hop, with mTLS and the peer's role checked by name.

gRPC binds a client certificate to a channel for good, and a channel that reconnects with one that has expired is refused for
ever. So an inner channel is two at a time: calls begin on one that shows the certificate this node has now; the one before ends
when the calls on it have. TLS looks at certificates when a connection begins, and never again: calls in flight are not touched.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Self
from weakref import WeakSet

import grpc
import grpc.aio

from runtime.certificates import NodeCertificate
from runtime.identity import NodeIdentity, Role, server_name
from runtime.ids import NodeId


def inner_channel(
    address: str, identity: NodeIdentity, role: Role, *, node_id: NodeId | None = None, message_bytes: int = 64 * 1024 * 1024
) -> grpc.aio.Channel:
    """A channel to host:port that only a node of that role (and of that id, where given) can answer."""
    options = [("grpc.ssl_target_name_override", server_name(role, node_id)), *channel_options(message_bytes)]

    def opened(certificate_pem: bytes) -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(identity.authority_pem, identity.tls_key_pem, certificate_pem)
        return grpc.aio.secure_channel(address, credentials, options=options)

    return RenewedChannel(identity, opened)


class _Showing:
    """A channel, the certificate that it shows, and the calls on it that have not ended."""

    __slots__ = ("calls", "certificate", "channel")

    def __init__(self, channel: grpc.aio.Channel, certificate: NodeCertificate) -> None:
        self.channel, self.certificate = channel, certificate
        self.calls: WeakSet[grpc.aio.Call] = WeakSet()  # as gRPC's own channels know theirs


class RenewedChannel(grpc.aio.Channel):
    """A channel whose new calls show the newest certificate of an identity. Belongs to one event loop."""

    def __init__(self, identity: NodeIdentity, opened: Callable[[bytes], grpc.aio.Channel]) -> None:
        self._identity, self._open = identity, opened
        self._now = _Showing(opened(identity.certificate_pem), identity.certificate)
        self._closed = False
        self._closing: set[asyncio.Task[None]] = set()
        self.left: set[_Showing] = set()
        """Those with an older certificate whose last calls have not ended yet."""

    def current(self) -> _Showing:
        """What a call that begins now is to use."""
        certificate = self._identity.certificate
        if certificate is not self._now.certificate and not self._closed:
            before, self._now = self._now, _Showing(self._open(certificate.pem), certificate)
            self.left.add(before)
            self._close_if_idle(before)
        return self._now

    def follow(self, showing: _Showing, call: grpc.aio.Call) -> None:
        """Know when this call ends."""
        showing.calls.add(call)
        call.add_done_callback(partial(self._ended, showing))

    def _ended(self, showing: _Showing, call: grpc.aio.Call) -> None:
        showing.calls.discard(call)
        if showing in self.left:
            self._close_if_idle(showing)

    def _close_if_idle(self, showing: _Showing) -> None:
        if not showing.calls and not self._closed:
            self.left.discard(showing)
            closing = asyncio.get_running_loop().create_task(showing.channel.close(), name="close an older channel")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def close(self, grace: float | None = None) -> None:
        self._closed = True
        open_now = [self._now, *self.left]
        await asyncio.gather(*(showing.channel.close(grace) for showing in open_now), *self._closing)
        self.left.clear()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self.current().channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self.current().channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self.current().channel.channel_ready()

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        return _Method(self, lambda channel: channel.unary_unary(*arguments, **options))

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        return _Method(self, lambda channel: channel.unary_stream(*arguments, **options))

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:
        return _Method(self, lambda channel: channel.stream_unary(*arguments, **options))

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        return _Method(self, lambda channel: channel.stream_stream(*arguments, **options))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class _Method:
    """What a stub calls: the method on whichever channel is current."""

    __slots__ = ("_callable", "_make", "_renewed", "_showing")

    def __init__(self, renewed: RenewedChannel, make: Callable[[grpc.aio.Channel], Callable[..., Any]]) -> None:
        self._renewed, self._make = renewed, make
        self._showing = renewed.current()
        self._callable = make(self._showing.channel)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        showing = self._renewed.current()
        if showing is not self._showing:
            self._showing, self._callable = showing, self._make(showing.channel)
        call = self._callable(*arguments, **options)
        self._renewed.follow(showing, call)
        return call


def channel_options(message_bytes: int) -> list[tuple[str, int]]:
    """Reconnects within a second, notices a silent peer, takes messages up to this size."""
    return [
        ("grpc.max_receive_message_length", message_bytes),
        ("grpc.max_send_message_length", message_bytes),
        ("grpc.initial_reconnect_backoff_ms", 100),
        # The time one attempt gets to connect, TLS included, and no wait between attempts, whatever its name says. Too short,
        # and a link with 50 ms of latency, or a busy machine, never completes a handshake.
        ("grpc.min_reconnect_backoff_ms", 5_000),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.keepalive_time_ms", 10_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        # 60 s by default, and what ends a silent connection in the end: gRPC core, chttp2_transport.cc.
        ("grpc.http2.ping_timeout_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
