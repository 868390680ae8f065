"""What a certificate may say: whatever a node asks to be called, it is not another."""

from __future__ import annotations

import time

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from runtime.certificates import (
    DOMAIN_SUFFIX,
    NodeCertificate,
    Peer,
    Role,
    hosts_fault,
    hosts_of,
    peer_of_names,
    server_name,
)
from runtime.errors import FailedPrecondition, PenstockError, PermissionDenied
from runtime.identity import Authority, load_identity, public_key_of, tls_key_of
from runtime.ids import NodeId, TenantId

DAY_S = 86_400.0
HOST_LIKE = st.one_of(
    st.text(max_size=40),
    st.text(st.sampled_from("abc019.-_:*/ \u00e9"), max_size=30),
    st.ip_addresses().map(str),
    st.sampled_from(
        [server_name(Role.REGISTRY), DOMAIN_SUFFIX, "penstock://operator/x", "penstock-tenant://acme", "fe80::1%eth0"]
    ),
)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.open(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def tls_key_pem(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> bytes:
    return authority.enrol(tmp_path_factory.mktemp("node"), Role.WORKER).tls_key_pem


@given(hosts=st.lists(HOST_LIKE, max_size=4))
def test_a_host_that_may_be_chosen_never_makes_a_node_another(
    authority: Authority, tls_key_pem: bytes, hosts: list[str]
) -> None:
    peer = Peer(Role.WORKER, NodeId("0" * 20), frozenset({TenantId("acme")}))
    if hosts_fault(hosts):
        with pytest.raises(FailedPrecondition):
            authority.certify(public_key_of(tls_key_pem), peer, hosts, time.time(), DAY_S)
        return
    made = authority.certify(public_key_of(tls_key_pem), peer, hosts, time.time(), DAY_S)
    certificate = x509.load_der_x509_certificate(made.der)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert made.peer == peer
    assert NodeCertificate.read(made.pem) == made
    inner = {name for name in names.get_values_for_type(x509.DNSName) if name.lower().endswith(DOMAIN_SUFFIX)}
    assert inner == {server_name(Role.WORKER), server_name(Role.WORKER, peer.node_id)}
    assert set(names.get_values_for_type(x509.UniformResourceIdentifier)) == {
        f"penstock://worker/{peer.node_id}",
        "penstock-tenant://acme",
    }
    assert len(hosts_of(certificate)) == len(hosts)


@pytest.mark.parametrize("host", ["gpu1", "gpu1.example.org", "10.0.0.1", "::1", "my_host", "a-b.c", "xn--bcher-kva.example"])
def test_ordinary_hosts_are_taken(host: str) -> None:
    assert hosts_fault([host]) is None


def test_a_certificate_that_names_two_bearers_is_nobodys() -> None:
    with pytest.raises(PermissionDenied):
        peer_of_names(["penstock://worker/a", "penstock://operator/b"])
    assert peer_of_names(["https://x", "penstock://worker/a", "penstock-tenant://acme"]).tenants == {"acme"}


def test_a_certificate_never_outlives_the_authority(authority: Authority, tls_key_pem: bytes) -> None:
    end_s = authority.certificate.not_valid_after_utc.timestamp()
    made = authority.certify(public_key_of(tls_key_pem), Peer(Role.WORKER, NodeId("n")), [], end_s - DAY_S, 90 * DAY_S)
    assert made.expires_wall_s == end_s
    with pytest.raises(FailedPrecondition, match="expired"):
        authority.certify(public_key_of(tls_key_pem), Peer(Role.WORKER, NodeId("n")), [], end_s, DAY_S)


@given(st.binary(max_size=200))
def test_garbage_is_no_certificate(raw: bytes) -> None:
    with pytest.raises(FailedPrecondition):
        NodeCertificate.read(raw)


@pytest.mark.parametrize("name", ["ca.pem", "ca.key"])
def test_an_authority_is_whole_or_none(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    folder, other = tmp_path_factory.mktemp("ca"), tmp_path_factory.mktemp("other")
    Authority.open(folder)
    Authority.open(other)
    (folder / name).write_bytes((other / name).read_bytes())
    with pytest.raises(FailedPrecondition, match="not the key"):
        Authority.load(folder)
    (folder / name).unlink()
    with pytest.raises(FailedPrecondition, match="authority"):
        Authority.load(folder)


@pytest.mark.parametrize("name", ["ed25519.key", "tls.key", "tls.pem"])
def test_an_identity_whose_parts_are_of_two_nodes_is_refused(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority, name: str
) -> None:
    folder, other = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("other")
    for one in (folder, other):
        authority.enrol(one, Role.WORKER)
    (folder / name).write_bytes((other / name).read_bytes())
    with pytest.raises(FailedPrecondition, match="not of one node"):
        load_identity(folder)
    (folder / name).write_bytes(b"garbage")
    with pytest.raises(PenstockError):
        load_identity(folder)


def test_a_key_of_another_kind_is_no_tls_key() -> None:
    with pytest.raises(ValueError, match=r"PEM|key"):
        tls_key_of(b"garbage")
