"""TLS of the edge: mutual towards gateways, ordinary towards clients. Names files; never reads a key.

Certificates are secrets of their own, by discovery: then Envoy watches the folders of the files they name, and uses a new
certificate as soon as it is moved into place. What is named in a cluster or a listener itself is read once.
Source: Envoy's TlsCertificate, "a watch will be added to the parent directory … only when delivered via SDS".
"""

from __future__ import annotations

from pathlib import Path

from xds import core_pb2, matcher_pb2, tls_pb2

from gateway.xds.packing import flag, over_ads, packed

IDENTITY = "mesh-identity"
CERTIFICATE = "edge-certificate"
_SOCKET = "envoy.transport_sockets.tls"


def certificate_secret(name: str, certificate: Path, key: Path) -> tls_pb2.Secret:
    """A certificate with its key, by their files where Envoy runs."""
    return tls_pb2.Secret(
        name=name, tls_certificate=tls_pb2.TlsCertificate(certificate_chain=_file(certificate), private_key=_file(key))
    )


def towards_gateway(
    authority: Path, gateway_name: str, identity_from: core_pb2.ConfigSource | None = None, *, protocol: str = "h2"
) -> core_pb2.TransportSocket:
    """mTLS: this edge's certificate is shown, and the other side's has to be the authority's and carry the name.

    `identity_from`: where the certificate is told of; none: over the discovery stream.
    """
    believed = tls_pb2.CertificateValidationContext(
        trusted_ca=_file(authority),
        match_typed_subject_alt_names=[
            tls_pb2.SubjectAltNameMatcher(
                san_type=tls_pb2.SubjectAltNameMatcher.DNS, matcher=matcher_pb2.StringMatcher(exact=gateway_name)
            )
        ],
    )
    common = tls_pb2.CommonTlsContext(
        tls_params=_modern(),
        tls_certificate_sds_secret_configs=[_shown(IDENTITY, identity_from)],
        validation_context=believed,
        alpn_protocols=[protocol],
    )
    return core_pb2.TransportSocket(
        name=_SOCKET, typed_config=packed(tls_pb2.UpstreamTlsContext(common_tls_context=common, sni=gateway_name))
    )


def towards_clients() -> core_pb2.TransportSocket:
    """HTTPS: HTTP/2 where the client can, HTTP/1.1 where not."""
    common = tls_pb2.CommonTlsContext(
        tls_params=_modern(),
        tls_certificate_sds_secret_configs=[_shown(CERTIFICATE)],
        alpn_protocols=["h2", "http/1.1"],
    )
    return core_pb2.TransportSocket(name=_SOCKET, typed_config=packed(tls_pb2.DownstreamTlsContext(common_tls_context=common)))


def towards_nodes(authority: Path) -> core_pb2.TransportSocket:
    """TLS that asks for a certificate of this mesh and does without: who enrols has none yet, and people show a session."""
    common = tls_pb2.CommonTlsContext(
        tls_params=_modern(),
        tls_certificate_sds_secret_configs=[_shown(IDENTITY)],
        validation_context=tls_pb2.CertificateValidationContext(trusted_ca=_file(authority)),
        alpn_protocols=["h2"],
    )
    context = tls_pb2.DownstreamTlsContext(common_tls_context=common, require_client_certificate=flag(False))
    return core_pb2.TransportSocket(name=_SOCKET, typed_config=packed(context))


def _modern() -> tls_pb2.TlsParameters:
    return tls_pb2.TlsParameters(
        tls_minimum_protocol_version=tls_pb2.TlsParameters.TLSv1_2, tls_maximum_protocol_version=tls_pb2.TlsParameters.TLSv1_3
    )


def _shown(name: str, source: core_pb2.ConfigSource | None = None) -> tls_pb2.SdsSecretConfig:
    return tls_pb2.SdsSecretConfig(name=name, sds_config=source or over_ads())


def _file(path: Path) -> core_pb2.DataSource:
    return core_pb2.DataSource(filename=str(path))
