"""One way to call: channels of an inner hop, with mTLS and the peer's role checked by name."""

from __future__ import annotations

import grpc
import grpc.aio

from runtime.identity import NodeIdentity, Role, server_name
from runtime.ids import NodeId


def inner_channel(
    address: str, identity: NodeIdentity, role: Role, *, node_id: NodeId | None = None, message_bytes: int = 64 * 1024 * 1024
) -> grpc.aio.Channel:
    """A channel to host:port that only a node of that role (and of that id, where given) can answer."""
    credentials = grpc.ssl_channel_credentials(identity.authority_pem, identity.tls_key_pem, identity.certificate_pem)
    name = server_name(role, node_id)
    return grpc.aio.secure_channel(
        address, credentials, options=[("grpc.ssl_target_name_override", name), *channel_options(message_bytes)]
    )


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
