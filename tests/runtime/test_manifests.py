"""Signed manifests: believed as they were signed, from those who may, and never otherwise."""

from __future__ import annotations

from pathlib import Path

import nacl.signing
import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.registry.v1 import models_pb2

from runtime.errors import FailedPrecondition
from runtime.identity import node_id_of
from runtime.manifests import (
    ManifestRefused,
    digest_of,
    may_sign,
    read_trusted_signers,
    sign_endorsement,
    sign_manifest,
    tenant_of,
    verify_endorsement,
    verify_manifest,
)

ROOT, KEY, STRANGER = (nacl.signing.SigningKey(letter * 32) for letter in (b"r", b"k", b"s"))
ROOTS = frozenset({bytes(ROOT.verify_key)})
MANIFEST = models_pb2.Manifest(model="acme-digits", version="1", engine="onnx", task="tensor", tenant="acme")


def endorsed(
    key: nacl.signing.SigningKey = KEY,
    by: nacl.signing.SigningKey = ROOT,
    tenant: str = "acme",
    models: tuple[str, ...] = ("acme-*",),
    expires_at_ms: int = 0,
) -> models_pb2.SignedEndorsement:
    said = models_pb2.Endorsement(
        tenant=tenant, ed25519_public_key=bytes(key.verify_key), models=models, expires_at_ms=expires_at_ms
    )
    return sign_endorsement(by, said)


def test_a_root_is_believed() -> None:
    signed = sign_manifest(ROOT, MANIFEST)
    verified = verify_manifest(signed, ROOTS)
    assert verified.manifest == MANIFEST
    assert verified.digest == digest_of(signed)
    assert (verified.signer_id, verified.tenant) == (node_id_of(bytes(ROOT.verify_key)), "acme")


def test_an_endorsed_key_is_believed_for_what_it_was_endorsed() -> None:
    assert verify_manifest(sign_manifest(KEY, MANIFEST), ROOTS, endorsed()).tenant == "acme"


@pytest.mark.parametrize(
    ("endorsement", "words"),
    [
        (None, "not trusted here"),
        (endorsed(by=STRANGER), "not trusted here"),
        (endorsed(by=KEY), "not trusted here"),
        (endorsed(key=STRANGER), "not of the manifest's signer"),
        (endorsed(tenant="globex"), "globex"),
        (endorsed(models=("globex-*",)), "may not sign"),
        (endorsed(models=()), "it may sign: none"),
        (endorsed(models=("ACME-*",)), "may not sign"),
        (endorsed(expires_at_ms=5), "expired"),
    ],
    ids=["none", "by a stranger", "by itself", "of another", "tenant", "model", "no model", "case", "expired"],
)
def test_an_endorsement_says_no_more_than_it_says(endorsement: models_pb2.SignedEndorsement | None, words: str) -> None:
    with pytest.raises(ManifestRefused, match=words):
        verify_manifest(sign_manifest(KEY, MANIFEST), ROOTS, endorsement, now_ms=5)


def test_an_endorsement_holds_until_its_end() -> None:
    verify_manifest(sign_manifest(KEY, MANIFEST), ROOTS, endorsed(expires_at_ms=6), now_ms=5)


@pytest.mark.parametrize("key", [ROOT, KEY], ids=["root", "endorsed"])
def test_a_revoked_signer_is_not_believed(key: nacl.signing.SigningKey) -> None:
    revoked = {node_id_of(bytes(key.verify_key))}
    with pytest.raises(ManifestRefused, match="revoked"):
        verify_manifest(sign_manifest(key, MANIFEST), ROOTS, endorsed(), revoked_signers=revoked)


def test_a_signature_is_over_one_kind_of_thing() -> None:
    """An endorsement's signature is none of a manifest, even where the bytes are the same."""
    signed = endorsed()
    as_manifest = models_pb2.SignedManifest(
        manifest=signed.endorsement, signature=signed.signature, ed25519_public_key=signed.ed25519_public_key
    )
    with pytest.raises(ManifestRefused, match="altered"):
        verify_manifest(as_manifest, ROOTS)


@given(st.sampled_from(["manifest", "signature", "ed25519_public_key"]), st.data())
def test_one_flipped_bit_is_refused(part: str, data: st.DataObject) -> None:
    signed = sign_manifest(ROOT, MANIFEST)
    content = bytearray(getattr(signed, part))
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    setattr(signed, part, bytes(content))
    with pytest.raises(ManifestRefused):
        verify_manifest(signed, ROOTS)


@given(st.sampled_from(["endorsement", "signature", "ed25519_public_key"]), st.data())
def test_one_flipped_bit_of_an_endorsement_is_refused(part: str, data: st.DataObject) -> None:
    signed = endorsed()
    content = bytearray(getattr(signed, part))
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    setattr(signed, part, bytes(content))
    with pytest.raises(ManifestRefused):
        verify_endorsement(signed, ROOTS)


@given(st.binary(max_size=80), st.binary(max_size=70), st.binary(max_size=40))
def test_whatever_is_sent_is_refused_and_not_fallen_over(manifest: bytes, signature: bytes, key: bytes) -> None:
    signed = models_pb2.SignedManifest(manifest=manifest, signature=signature, ed25519_public_key=key)
    for roots in (ROOTS, {key}):
        with pytest.raises(ManifestRefused):
            verify_manifest(signed, roots)


def test_a_manifest_without_a_tenant_is_the_default_ones() -> None:
    assert tenant_of(models_pb2.Manifest()) == "default"


@pytest.mark.parametrize(
    ("patterns", "model", "fits"),
    [
        (["*"], "digits", True),
        (["dig?ts"], "digits", True),
        (["digits"], "digits2", False),
        (["a", "digits"], "digits", True),
        ([], "digits", False),
        (["[d]igits"], "digits", True),
    ],
)
def test_patterns_are_a_shells(patterns: list[str], model: str, fits: bool) -> None:
    assert may_sign(models_pb2.Endorsement(models=patterns), model) is fits


def test_trusted_signers_are_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "trusted"
    file.write_text(f"# operators\n{bytes(ROOT.verify_key).hex()}  # me\n\n")
    assert read_trusted_signers(file) == ROOTS
    for wrong in ("nonsense\n", "abcd\n"):
        file.write_text(wrong)
        with pytest.raises(FailedPrecondition, match="trusted"):
            read_trusted_signers(file)
    with pytest.raises(FailedPrecondition):
        read_trusted_signers(tmp_path / "none")
