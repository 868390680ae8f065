"""What `penstock nodes …` does, against the registry's NodeService."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from penstock.registry.v1 import nodes_pb2, nodes_pb2_grpc
from rich.console import Console
from rich.text import Text

from cli.profile import Profile
from cli.tables import console, table
from runtime.errors import FailedPrecondition
from runtime.identity import NodeIdentity, load_identity
from runtime.renewal import renewal_at

_SERVICES = ("gateway", "registry", "scheduler", "worker")


@dataclass(frozen=True, slots=True)
class Invited:
    """Who is to join, and until when."""

    role: str
    tenants: tuple[str, ...]
    lifetime_s: int


async def invite(profile: Profile, wanted: Invited) -> None:
    """Make a join token; its line goes to stdout, what to do with it to stderr."""
    request = nodes_pb2.CreateJoinTokenRequest(role=wanted.role, tenants=wanted.tenants, lifetime_s=wanted.lifetime_s)
    async with profile.registry_channel() as registry:
        made = await nodes_pb2_grpc.NodeServiceStub(registry).CreateJoinToken(request)
    Console().print(Text(made.secret, style="bold"), soft_wrap=True)
    for sentence in how_to_join(made.token):
        Console(stderr=True).print(Text(sentence, style="dim"), soft_wrap=True)


def how_to_join(token: nodes_pb2.JoinToken) -> list[str]:
    """What a person does with the line."""
    whose = f" for {', '.join(token.tenants)}" if token.tenants else ""
    until = _moment(token.expires_at_ms)
    sentences = [
        f"token {token.token_id} lets one {token.role}{whose} join, once, until {until} UTC; it is shown this once.",
        "On that machine, with the line above:",
        f"  penstock join LINE --identity-dir ./{token.role}-identity",
    ]
    if token.role in _SERVICES:
        sentences.append(f"  penstock {token.role} --identity-dir ./{token.role}-identity …")
    return sentences


async def show_nodes(profile: Profile, *, tokens: bool) -> None:
    """A row per node, or per join token."""
    async with profile.registry_channel() as registry:
        stub = nodes_pb2_grpc.NodeServiceStub(registry)
        if tokens:
            show_tokens(list((await stub.ListJoinTokens(nodes_pb2.ListJoinTokensRequest())).tokens))
            return
        nodes = (await stub.ListNodes(nodes_pb2.ListNodesRequest())).nodes
    rows = table("node", "role", "serves", "hosts", "enrolled", "state")
    now_ms = _now_ms()
    for node in nodes:
        rows.add_row(
            node.node_id,
            node.role or "-",
            ", ".join(node.tenants) or "all",
            ", ".join(node.hosts) or "-",
            _moment(node.enrolled_at_ms) if node.enrolled_at_ms else "elsewhere",
            node_state(node, now_ms),
        )
    console().print(
        rows if nodes else "no node was enrolled, renewed or revoked here; `penstock up` certifies its own by itself"
    )


def show_tokens(tokens: list[nodes_pb2.JoinToken]) -> None:
    rows = table("token", "role", "serves", "made", "state")
    now_ms = _now_ms()
    for token in tokens:
        state = token_state(token, now_ms)
        rows.add_row(token.token_id, token.role, ", ".join(token.tenants) or "all", _moment(token.created_at_ms), state)
    console().print(rows if tokens else "there are no join tokens; `penstock nodes invite ROLE` makes one")


def node_state(node: nodes_pb2.Node, now_ms: int) -> str:
    """Revoked, expired, or until when it is certified."""
    if node.revoked_at_ms:
        because = f": {node.revoked_because}" if node.revoked_because else ""
        return f"revoked {_moment(node.revoked_at_ms)}{because}"
    if not node.certificate_expires_at_ms:
        return "live"
    expired = node.certificate_expires_at_ms <= now_ms
    return f"{'expired' if expired else 'until'} {_moment(node.certificate_expires_at_ms)}"


def token_state(token: nodes_pb2.JoinToken, now_ms: int) -> str:
    if token.revoked_at_ms:
        return f"revoked {_moment(token.revoked_at_ms)}"
    if token.used_at_ms:
        return f"used {_moment(token.used_at_ms)} by {token.node_id}"
    return f"{'expired' if token.expires_at_ms <= now_ms else 'until'} {_moment(token.expires_at_ms)}"


async def revoke(profile: Profile, node_id: str, reason: str) -> None:
    """Put a node out of the mesh."""
    async with profile.registry_channel() as registry:
        request = nodes_pb2.RevokeNodeRequest(node_id=node_id, reason=reason)
        node = (await nodes_pb2_grpc.NodeServiceStub(registry).RevokeNode(request)).node
    role = f"{node.role} " if node.role else ""
    sentence = f"revoked {role}{node.node_id}: nobody in the mesh talks to it any more; it cannot come back with this key"
    Console().print(Text(sentence), soft_wrap=True)


async def uninvite(profile: Profile, token_id: str) -> None:
    """End a join token that nobody used."""
    async with profile.registry_channel() as registry:
        request = nodes_pb2.RevokeJoinTokenRequest(token_id=token_id)
        token = (await nodes_pb2_grpc.NodeServiceStub(registry).RevokeJoinToken(request)).token
    was_used = f"; it had been used by {token.node_id}, which stays (`penstock nodes revoke`)" if token.used_at_ms else ""
    Console().print(Text(f"join token {token.token_id} lets nobody in{was_used}"), soft_wrap=True)


async def renew(folder: Path, registry_address: str) -> NodeIdentity:
    """A new certificate now, for identities that no running process keeps: an operator's, Envoy's."""
    identity = load_identity(folder)
    if not registry_address:
        raise FailedPrecondition("no registry address is known; pass --registry HOST:PORT, of its inner port")
    await renewal_at(identity, registry_address).renew()
    return identity


def _now_ms() -> int:
    return int(datetime.now(UTC).timestamp() * 1000)


def _moment(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M}"
