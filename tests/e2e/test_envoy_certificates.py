"""Certificates that were renewed are used by the real Envoy without a restart: its own in the mesh, and what clients see."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
from cryptography import x509

from gateway.xds.types import ServerFiles
from runtime.identity import Authority, NodeIdentity, Role, public_key_of, write_public
from tests.support.edge import EdgeUnderTest, StandIn, edge_under_test, started_edge

CHAT = "/v1/chat/completions"


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[tuple[EdgeUnderTest, StandIn]]:
    async with started_edge(tmp_path) as started:
        yield started


def renew(authority: Authority, identity: NodeIdentity) -> int:
    """A new certificate for the same key, moved into place as `runtime.renewal` does; its serial number."""
    hosts = ("localhost", "127.0.0.1")
    made = authority.certify(public_key_of(identity.tls_key_pem), identity.certificate.peer, hosts, time.time(), 3600)
    write_public(identity.files.certificate, made.pem)
    return x509.load_pem_x509_certificate(made.pem).serial_number


def serial(pem: bytes) -> int:
    return x509.load_pem_x509_certificate(pem).serial_number if pem else 0


async def until(reached: Callable[[], int], wanted: int) -> None:
    """Fails after a while."""
    async with asyncio.timeout(20):
        while await asyncio.to_thread(reached) != wanted:
            await asyncio.sleep(0.02)


async def test_a_renewed_public_certificate_is_shown_from_then_on(edge: tuple[EdgeUnderTest, StandIn], tmp_path: Path) -> None:
    public = Authority.open(tmp_path / "authority").enrol(tmp_path / "public", Role.ENVOY)
    edge[0].publish(*edge[0].gateways, server_files=ServerFiles(public.files.certificate, public.files.key))
    await edge[0].settled()
    listen, trusted = edge[0].edge.listen, ssl.create_default_context(cafile=public.files.authority)

    def shown() -> int:
        try:
            return serial(ssl.get_server_certificate((listen.host, listen.port)).encode())
        except OSError:
            return 0

    await until(shown, serial(public.certificate_pem))
    url = edge[0].url.replace("http:", "https:")
    async with httpx.AsyncClient(base_url=url, verify=trusted, http2=True) as client:
        assert (await client.get("/v1/models")).status_code == 200
        await until(shown, renew(edge[0].authority, public))
        assert (await client.get("/v1/models")).status_code == 200
    edge[0].publish(*edge[0].gateways, server_files=None)


async def test_a_renewed_certificate_of_its_own_is_shown_to_gateways(tmp_path: Path) -> None:
    async with edge_under_test(tmp_path) as edge:
        first, first_at, _ = await edge.gateway("first")
        second, second_at, _ = await edge.gateway("second")
        edge.publish(first_at)
        await (await edge.envoy(first_at)).until_listening(edge.edge.listen)
        await edge.settled()
        async with httpx.AsyncClient(base_url=edge.url) as client:
            assert (await client.post(CHAT, json={"do": "plain"})).status_code == 200
            assert serial(first.peer_pem) == serial(edge.envoy_identity.certificate_pem)
            renewed = renew(edge.authority, edge.envoy_identity)
            async with asyncio.timeout(20):
                while serial(second.peer_pem) != renewed:  # each time over connections that are new to Envoy
                    edge.publish(second_at)
                    await edge.settled()
                    assert (await client.post(CHAT, json={"do": "plain"})).status_code == 200
                    edge.publish(first_at)
                    await edge.settled()


async def test_a_renewed_certificate_of_its_own_is_shown_to_the_control_plane(tmp_path: Path) -> None:
    seen: list[int] = []
    async with edge_under_test(tmp_path) as edge:

        def note(context: object) -> None:
            shown = context.auth_context().get("x509_pem_cert", ())  # type: ignore[attr-defined]
            seen.append(serial(next(iter(shown), b"")))

        edge.discovery._authorise = note
        _, control_at, control = await edge.gateway("control")
        edge.publish(control_at)
        await (await edge.envoy(control_at)).until_listening(edge.edge.listen)
        await edge.settled()
        assert seen[-1] == serial(edge.envoy_identity.certificate_pem)
        renewed = renew(edge.authority, edge.envoy_identity)
        async with asyncio.timeout(40):
            while seen[-1] != renewed:
                await control.server.stop(0)
                _, _, control = await edge.gateway("control", port=control_at.port)
                await edge.settled()
