"""The members of an etcd cluster: a channel to each, which of them is asked, and as whom.

Owns channels, failover and the login. A member is reached before a write is sent to it, so that a write goes out at most once;
only what may be repeated is asked of another member after it was sent. Never knows what the calls mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import grpc
import grpc.aio
import structlog
from etcdserverpb import rpc_pb2, rpc_pb2_grpc

from runtime.errors import InvalidArgument, PenstockError
from runtime.etcd_codec import error_of, is_expired_login
from runtime.keyvalue import EtcdUnavailable, OutcomeUnknown

T = TypeVar("T")
Metadata: TypeAlias = tuple[tuple[str, str], ...]
_log = structlog.get_logger("penstock.etcd")

# A member cut off from its quorum answers UNAVAILABLE instead of staying silent. Source: etcd rpctypes/md.go.
_HAS_LEADER = ("hasleader", "true")


@dataclass(frozen=True, slots=True)
class EtcdTls:
    """What TLS to etcd needs; certificate and key where etcd asks for a client certificate."""

    authority_pem: bytes
    certificate_pem: bytes | None = None
    key_pem: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class EtcdUser:
    name: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class EtcdSettings:
    """Where etcd is, and how it is asked. Endpoints are host:port."""

    endpoints: tuple[str, ...]
    tls: EtcdTls | None = None
    user: EtcdUser | None = None
    connect_timeout_s: float = 2.0
    call_timeout_s: float = 5.0

    @classmethod
    def at(cls, endpoints: str, *, tls: EtcdTls | None = None, user: EtcdUser | None = None) -> EtcdSettings:
        """From comma-separated host:port, with or without a scheme. Raises InvalidArgument."""
        found = tuple(_address(part.strip(), tls) for part in endpoints.split(",") if part.strip())
        if not found:
            raise InvalidArgument("no etcd endpoint given; give host:port, several separated by commas")
        return cls(found, tls, user)


def _address(text: str, tls: EtcdTls | None) -> str:
    scheme, has_scheme, rest = text.rpartition("://")
    address = rest.rstrip("/")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InvalidArgument(f"{text} is no etcd endpoint; give host:port, such as 127.0.0.1:2379 or [::1]:2379")
    if has_scheme and scheme != ("http" if tls is None else "https"):
        wanted = "https, with the authority's certificate" if tls is None else "http, or drop the certificates"
        raise InvalidArgument(f"{text} does not fit the TLS settings; use {wanted} or the other scheme")
    return address


@dataclass(frozen=True, slots=True)
class Member:
    """One endpoint and what it can be asked."""

    endpoint: str
    channel: grpc.aio.Channel
    kv: rpc_pb2_grpc.KVStub
    watch: rpc_pb2_grpc.WatchStub
    lease: rpc_pb2_grpc.LeaseStub
    auth: rpc_pb2_grpc.AuthStub
    maintenance: rpc_pb2_grpc.MaintenanceStub


Ask: TypeAlias = Callable[[Member, Metadata], Awaitable[T]]


class EtcdMembers:
    """Asks one member, and goes on to the next when it does not answer. Opens its channels on entering."""

    def __init__(self, settings: EtcdSettings) -> None:
        self._settings = settings
        self._members: tuple[Member, ...] = ()
        self._current = 0
        self._token = ""
        self._login = asyncio.Lock()

    def open(self) -> None:
        self._members = tuple(_member(endpoint, self._settings) for endpoint in self._settings.endpoints)

    async def close(self) -> None:
        members, self._members = self._members, ()
        for member in members:
            await member.channel.close(None)

    async def ask(self, call: Ask[T], *, repeatable: bool) -> T:
        """The answer of the first member that gives one. Raises EtcdUnavailable, OutcomeUnknown, or what etcd refused with."""
        failed: EtcdUnavailable | None = None
        for _ in self._settings.endpoints:
            member = await self.reach()
            try:
                metadata = await self.metadata(member)
            except EtcdUnavailable as error:
                self.distrust(member)
                failed = error
                continue
            try:
                return await self._as_user(member, call, metadata)
            except EtcdUnavailable as error:
                self.distrust(member)
                if not repeatable:
                    raise OutcomeUnknown(f"{error.message} Whether the write happened is not known.") from error
                failed = error
        raise failed or EtcdUnavailable("no etcd endpoint is configured")

    async def reach(self) -> Member:
        """A member that is connected: the current one, else the next that answers. Raises EtcdUnavailable if none does."""
        failures: list[str] = []
        for _ in self._settings.endpoints:
            if not self._members:
                raise EtcdUnavailable("the etcd session is closed")
            member = self._members[self._current]
            if member.channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY:
                return member
            try:
                await member.maintenance.Status(rpc_pb2.StatusRequest(), timeout=self._settings.connect_timeout_s)
                return member
            except grpc.aio.AioRpcError as failure:
                error = error_of(failure, member.endpoint)
                if not isinstance(error, EtcdUnavailable):
                    return member  # it answers; what it refuses is the real call's affair
                failures.append(error.message)
                self.distrust(member)
        raise EtcdUnavailable("; ".join(failures))

    def distrust(self, member: Member) -> None:
        """Ask the next one from now on, if it is this one that is being asked."""
        if self._members and self._members[self._current] is member and len(self._members) > 1:
            self._current = (self._current + 1) % len(self._members)
            _log.info("etcd_failover", left=member.endpoint, asked=self._members[self._current].endpoint)

    async def metadata(self, member: Member) -> Metadata:
        """What goes with a call: the token of the login, where there is a user."""
        if self._settings.user is None:
            return (_HAS_LEADER,)
        if not self._token:
            await self._log_in(member, "")
        return (_HAS_LEADER, ("token", self._token))

    def forget_login(self) -> None:
        """Log in again before the next call."""
        self._token = ""

    async def _as_user(self, member: Member, call: Ask[T], metadata: Metadata) -> T:
        token = self._token
        try:
            try:
                return await call(member, metadata)
            except grpc.aio.AioRpcError as failure:
                if not token or not is_expired_login(failure):
                    raise
            # Refused before it was executed, so asking again repeats nothing.
            await self._log_in(member, token)
            return await call(member, await self.metadata(member))
        except grpc.aio.AioRpcError as failure:
            raise error_of(failure, member.endpoint) from failure

    async def _log_in(self, member: Member, refused: str) -> None:
        """Get a token, unless another call has replaced the refused one meanwhile."""
        user = self._settings.user
        async with self._login:
            if user is None or self._token != refused:
                return
            self._token = ""
            request = rpc_pb2.AuthenticateRequest(name=user.name, password=user.password)
            try:
                answer = await member.auth.Authenticate(request, timeout=self._settings.call_timeout_s)
            except grpc.aio.AioRpcError as failure:
                raise _without(user.password, error_of(failure, member.endpoint)) from None
            self._token = answer.token


def _without(password: str, error: PenstockError) -> PenstockError:
    return type(error)(error.message.replace(password, "…")) if password else error


def _member(endpoint: str, settings: EtcdSettings) -> Member:
    options = [*_OPTIONS, ("grpc.min_reconnect_backoff_ms", int(settings.connect_timeout_s * 1000))]
    if settings.tls is None:
        channel = grpc.aio.insecure_channel(endpoint, options=options)
    else:
        tls = settings.tls
        credentials = grpc.ssl_channel_credentials(tls.authority_pem, tls.key_pem, tls.certificate_pem)
        channel = grpc.aio.secure_channel(endpoint, credentials, options=options)
    return Member(
        endpoint,
        channel,
        rpc_pb2_grpc.KVStub(channel),
        rpc_pb2_grpc.WatchStub(channel),
        rpc_pb2_grpc.LeaseStub(channel),
        rpc_pb2_grpc.AuthStub(channel),
        rpc_pb2_grpc.MaintenanceStub(channel),
    )


_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", -1),  # as etcd's own client: a page of values is as large as they are
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # min_reconnect_backoff_ms, in spite of its name, is how long one attempt may take (gRPC's connection-backoff.md,
    # MIN_CONNECT_TIMEOUT): a short one never ends a handshake with a busy or distant member.
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # etcd drops clients that ping more often than every 5 s, or at all without an open stream (its embed/config.go,
    # GRPCKeepAliveMinTime; grpc-go's EnforcementPolicy.PermitWithoutStream).
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.ping_timeout_ms", 5_000),  # its default of 60 s, not the line above, is what a silent network waited for
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
]
