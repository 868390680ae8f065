"""A certificate that somebody else renews is shown from then on; a pair that does not fit is never shown."""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509

from runtime.errors import FailedPrecondition
from runtime.identity import Authority, NodeIdentity, Role, public_key_of, write_public
from runtime.public_certificate import CertificateFiles
from runtime.serving import Listen, serving


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.open(tmp_path / "ca")


@pytest.fixture
def public(authority: Authority, tmp_path: Path) -> NodeIdentity:
    return authority.enrol(tmp_path / "public", Role.GATEWAY)


def files_of(identity: NodeIdentity) -> CertificateFiles:
    return CertificateFiles(identity.files.certificate, identity.files.key)


def renew(authority: Authority, identity: NodeIdentity) -> bytes:
    key = public_key_of(identity.tls_key_pem)
    pem = authority.certify(key, identity.certificate.peer, ("localhost",), time.time(), 3600).pem
    write_public(identity.files.certificate, pem)
    return pem


def serial(pem: bytes) -> int:
    return x509.load_pem_x509_certificate(pem).serial_number


async def test_whoever_connects_sees_the_newest(authority: Authority, public: NodeIdentity) -> None:
    shown = files_of(public).opened()
    async with serving([Listen("127.0.0.1", 0, public_tls=shown)], [], [], drain_grace_s=0.1) as running:

        def seen() -> int:
            return serial(ssl.get_server_certificate(("127.0.0.1", running.ports[0])).encode())

        assert await asyncio.to_thread(seen) == serial(public.certificate_pem)
        renewed = renew(authority, public)
        assert await asyncio.to_thread(seen) == serial(renewed)
        public.files.certificate.write_bytes(b"half of a certificate")
        assert await asyncio.to_thread(seen) == serial(renewed)


def test_it_is_read_again_only_when_it_was_replaced(authority: Authority, public: NodeIdentity) -> None:
    files = files_of(public)
    assert files.opened().certificate_pem == public.certificate_pem
    assert files.renewed() is None
    renewed = renew(authority, public)
    found = files.renewed()
    assert found is not None
    assert found.certificate_pem == renewed
    assert files.renewed() is None


def test_between_a_new_certificate_and_its_key_the_old_pair_stays(
    authority: Authority, public: NodeIdentity, tmp_path: Path
) -> None:
    files = files_of(public)
    files.opened()
    other = authority.enrol(tmp_path / "other", Role.GATEWAY)
    write_public(public.files.certificate, other.certificate_pem)
    assert files.renewed() is None
    write_public(public.files.key, other.tls_key_pem)
    found = files.renewed()
    assert found is not None
    assert (found.certificate_pem, found.key_pem) == (other.certificate_pem, other.tls_key_pem)


@pytest.mark.parametrize(
    "harm",
    [
        lambda public: public.files.key.unlink(),
        lambda public: public.files.certificate.write_bytes(b"nothing"),
        lambda public: public.files.key.write_bytes(b""),
        lambda public: os.replace(public.folder / "ca.pem", public.files.certificate),
    ],
)
def test_what_cannot_be_shown_is_said_at_the_start_and_passed_over_later(
    public: NodeIdentity, harm: Callable[[NodeIdentity], None]
) -> None:
    files = files_of(public)
    files.opened()
    harm(public)
    assert files.renewed() is None
    with pytest.raises(FailedPrecondition, match="tls"):
        files_of(public).opened()
