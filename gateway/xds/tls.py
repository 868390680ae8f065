"""TLS of the edge: mutual towards gateways, ordinary towards clients. Names files; never reads a key."""

from __future__ import annotations

from pathlib import Path

from xds import core_pb2, matcher_pb2, tls_pb2

from gateway.xds.packing import flag, packed
from gateway.xds.types import ServerFiles
from runtime.identity import TlsFiles

_SOCKET = "envoy.transport_sockets.tls"


def towards_gateway(identity: TlsFiles, gateway_name: str) -> core_pb2.TransportSocket:
    """mTLS: this edge's certificate is shown, and the other side's has to be the authority's and carry the name."""
    believed = tls_pb2.CertificateValidationContext(
        trusted_ca=_file(identity.authority),
        match_typed_subject_alt_names=[
            tls_pb2.SubjectAltNameMatcher(
                san_type=tls_pb2.SubjectAltNameMatcher.DNS, matcher=matcher_pb2.StringMatcher(exact=gateway_name)
            )
        ],
    )
    common = tls_pb2.CommonTlsContext(
        tls_params=_modern(),
        tls_certificates=[_shown(identity.certificate, identity.key)],
        validation_context=believed,
        alpn_protocols=["h2"],
    )
    return core_pb2.TransportSocket(
        name=_SOCKET, typed_config=packed(tls_pb2.UpstreamTlsContext(common_tls_context=common, sni=gateway_name))
    )


def towards_clients(files: ServerFiles) -> core_pb2.TransportSocket:
    """HTTPS: HTTP/2 where the client can, HTTP/1.1 where not."""
    common = tls_pb2.CommonTlsContext(
        tls_params=_modern(), tls_certificates=[_shown(files.certificate, files.key)], alpn_protocols=["h2", "http/1.1"]
    )
    return core_pb2.TransportSocket(name=_SOCKET, typed_config=packed(tls_pb2.DownstreamTlsContext(common_tls_context=common)))


def towards_nodes(identity: TlsFiles) -> core_pb2.TransportSocket:
    """TLS that asks for a certificate of this mesh and does without: who enrols has none yet, and people show a session."""
    common = tls_pb2.CommonTlsContext(
        tls_params=_modern(),
        tls_certificates=[_shown(identity.certificate, identity.key)],
        validation_context=tls_pb2.CertificateValidationContext(trusted_ca=_file(identity.authority)),
        alpn_protocols=["h2"],
    )
    context = tls_pb2.DownstreamTlsContext(common_tls_context=common, require_client_certificate=flag(False))
    return core_pb2.TransportSocket(name=_SOCKET, typed_config=packed(context))


def _modern() -> tls_pb2.TlsParameters:
    return tls_pb2.TlsParameters(
        tls_minimum_protocol_version=tls_pb2.TlsParameters.TLSv1_2, tls_maximum_protocol_version=tls_pb2.TlsParameters.TLSv1_3
    )


def _shown(certificate: Path, key: Path) -> tls_pb2.TlsCertificate:
    return tls_pb2.TlsCertificate(certificate_chain=_file(certificate), private_key=_file(key))


def _file(path: Path) -> core_pb2.DataSource:
    return core_pb2.DataSource(filename=str(path))
