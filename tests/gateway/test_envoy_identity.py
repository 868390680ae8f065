"""Envoy's certificate is renewed by the gateway beside it, in Envoy's name, and in the file that Envoy watches."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from penstock.registry.v1 import nodes_pb2

from gateway.config import GatewaySettings
from gateway.envoy_identity import envoy_renewed
from runtime.certificates import node_id_of
from runtime.enrolment import SignedRequest, check_request
from runtime.identity import Authority, NodeIdentity, Role, public_key_of, write_public
from runtime.serving import Listen, inner_peer, serving


class Registry:
    """Renews whoever asks, and remembers who did."""

    def __init__(self, authority: Authority) -> None:
        self._authority, self.asked = authority, asyncio.Event()
        self.callers: list[Role] = []

    async def renew(self, request: nodes_pb2.RenewCertificateRequest, context: Any) -> nodes_pb2.RenewCertificateResponse:
        peer = inner_peer(context)
        self.callers.append(peer.role)
        signed = SignedRequest(request.certificate_request, request.ed25519_public_key, request.signature)
        checked = check_request(signed, node_id_of(request.ed25519_public_key))
        made = self._authority.certify(checked.tls_key, peer, ["localhost"], time.time(), 90 * 86_400)
        self.asked.set()
        return nodes_pb2.RenewCertificateResponse(certificate_pem=made.pem, authority_pem=self._authority.certificate_pem)

    def register(self, server: grpc.aio.Server) -> None:
        handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
            self.renew,
            nodes_pb2.RenewCertificateRequest.FromString,
            nodes_pb2.RenewCertificateResponse.SerializeToString,
        )
        service = "penstock.registry.v1.NodeService"
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {"RenewCertificate": handler}),))


def settings_of(folder: Path, port: int) -> GatewaySettings:
    address = f"127.0.0.1:{port}"
    return GatewaySettings(
        identity_dir=folder / "gateway",
        registry_address=address,
        scheduler_address=address,
        http_port=1,
        envoy_identity_dir=folder / "envoy",
    )


def make_due(authority: Authority, envoy: NodeIdentity) -> None:
    """Most of its lifetime is over."""
    key, begun_s = public_key_of(envoy.tls_key_pem), time.time() - 80 * 86_400
    write_public(
        envoy.files.certificate, authority.certify(key, envoy.certificate.peer, ["localhost"], begun_s, 90 * 86_400).pem
    )


async def test_it_is_renewed_in_envoys_name(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path / "ca")
    envoy = authority.enrol(tmp_path / "envoy", Role.ENVOY)
    make_due(authority, envoy)
    before = envoy.files.certificate.read_bytes()
    registry = Registry(authority)
    listen = Listen("127.0.0.1", 0, authority.enrol(tmp_path / "registry", Role.REGISTRY))
    async with serving([listen], [registry.register], [], drain_grace_s=0.1) as running:
        async with envoy_renewed(settings_of(tmp_path, running.ports[0])), asyncio.timeout(20):
            await registry.asked.wait()
            while envoy.files.certificate.read_bytes() == before:
                await asyncio.sleep(0.01)
    assert registry.callers == [Role.ENVOY]


@pytest.mark.parametrize("role", [None, Role.WORKER])
async def test_where_envoys_folder_is_not_here_nobody_is_asked(tmp_path: Path, role: Role | None) -> None:
    if role is not None:
        Authority.open(tmp_path / "ca").enrol(tmp_path / "envoy", role)
    async with envoy_renewed(settings_of(tmp_path, 1)):
        pass
