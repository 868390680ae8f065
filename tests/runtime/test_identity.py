"""Node keys, certificates and what they say; records and manifests that only their signer can have made."""

from pathlib import Path

import nacl.signing
import pytest
from penstock.registry.v1 import models_pb2
from penstock.worker.v1 import presence_pb2

from runtime.errors import FailedPrecondition, PermissionDenied
from runtime.identity import Authority, Role, load_identity, node_id_of, peer_of_names
from runtime.manifests import ManifestRefused, digest_of, read_trusted_signers, sign_manifest, verify_manifest
from runtime.records import RecordRefused, RecordVerifier, sign_record

NOW_S = 4_000_000_000.0


def test_a_restart_keeps_who_a_node_is(tmp_path: Path) -> None:
    authority = Authority.open(tmp_path / "ca")
    first = authority.enrol(tmp_path / "worker", Role.WORKER)
    again = Authority.open(tmp_path / "ca").enrol(tmp_path / "worker", Role.WORKER)
    assert again == first
    assert first.node_id == node_id_of(first.ed25519_public_key)
    assert load_identity(tmp_path / "worker").role is Role.WORKER


def test_keys_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    Authority.open(tmp_path / "ca").enrol(tmp_path / "node", Role.GATEWAY)
    for name in ("ca/ca.key", "node/ed25519.key", "node/tls.key"):
        assert (tmp_path / name).stat().st_mode & 0o077 == 0, name


def test_keys_do_not_show_when_an_identity_is_printed(tmp_path: Path) -> None:
    identity = Authority.open(tmp_path / "ca").enrol(tmp_path / "node", Role.WORKER)
    assert "key" not in repr(identity).replace(str(tmp_path), "")


def test_a_missing_identity_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="penstock up"):
        load_identity(tmp_path / "nobody")


@pytest.mark.parametrize("names", [[], ["https://worker/abc"], ["penstock://emperor/abc"], ["penstock://worker/"]])
def test_certificates_without_a_role_are_refused(names: list[str]) -> None:
    with pytest.raises(PermissionDenied):
        peer_of_names(names)


class TestRecords:
    @pytest.fixture
    def mesh(self, tmp_path: Path) -> tuple[Authority, Path]:
        return Authority.open(tmp_path / "ca"), tmp_path

    def test_a_signed_record_opens(self, mesh: tuple[Authority, Path]) -> None:
        authority, folder = mesh
        worker = authority.enrol(folder / "w", Role.WORKER)
        opened = RecordVerifier(authority.certificate_pem).open(sign_record(worker, b"here"), now_wall_s=0)
        assert opened.payload == b"here"
        assert (opened.signer.role, opened.signer.node_id) == (Role.WORKER, worker.node_id)

    @pytest.mark.parametrize("field", ["payload", "signature", "ed25519_public_key", "certificate"])
    def test_one_flipped_bit_anywhere_is_refused(self, mesh: tuple[Authority, Path], field: str) -> None:
        authority, folder = mesh
        record = presence_pb2.SignedRecord.FromString(sign_record(authority.enrol(folder / "w", Role.WORKER), b"here"))
        raw = bytearray(getattr(record, field))
        raw[len(raw) // 2] ^= 1
        setattr(record, field, bytes(raw))
        with pytest.raises(RecordRefused):
            RecordVerifier(authority.certificate_pem).open(record.SerializeToString(), now_wall_s=0)

    def test_another_mesh_is_not_believed(self, mesh: tuple[Authority, Path]) -> None:
        authority, folder = mesh
        stranger = Authority.open(folder / "other-ca").enrol(folder / "s", Role.WORKER)
        with pytest.raises(RecordRefused, match="authority"):
            RecordVerifier(authority.certificate_pem).open(sign_record(stranger, b"here"), now_wall_s=0)

    def test_a_certificate_cannot_carry_another_nodes_key(self, mesh: tuple[Authority, Path]) -> None:
        authority, folder = mesh
        one, two = (authority.enrol(folder / name, Role.WORKER) for name in ("one", "two"))
        record = presence_pb2.SignedRecord.FromString(sign_record(one, b"here"))
        record.certificate = two.certificate_der
        with pytest.raises(RecordRefused, match="certified"):
            RecordVerifier(authority.certificate_pem).open(record.SerializeToString(), now_wall_s=0)

    def test_an_expired_certificate_is_refused(self, mesh: tuple[Authority, Path]) -> None:
        authority, folder = mesh
        raw = sign_record(authority.enrol(folder / "w", Role.WORKER), b"here")
        with pytest.raises(RecordRefused, match="expired"):
            RecordVerifier(authority.certificate_pem).open(raw, now_wall_s=NOW_S)

    @pytest.mark.parametrize("raw", [b"", b"\xff\xff", b"\x0a\x05hello"])
    def test_garbage_is_refused(self, mesh: tuple[Authority, Path], raw: bytes) -> None:
        with pytest.raises(RecordRefused):
            RecordVerifier(mesh[0].certificate_pem).open(raw, now_wall_s=0)


class TestManifests:
    KEY = nacl.signing.SigningKey(b"k" * 32)
    MANIFEST = models_pb2.Manifest(model="digits", version="1", engine="onnx")

    def test_a_trusted_signature_opens(self) -> None:
        signed = sign_manifest(self.KEY, self.MANIFEST)
        verified = verify_manifest(signed, {bytes(self.KEY.verify_key)})
        assert verified.manifest == self.MANIFEST
        assert verified.digest == digest_of(signed)

    def test_an_untrusted_signer_is_named(self) -> None:
        with pytest.raises(ManifestRefused, match="not trusted"):
            verify_manifest(sign_manifest(self.KEY, self.MANIFEST), set())

    def test_an_altered_manifest_is_refused(self) -> None:
        signed = sign_manifest(self.KEY, self.MANIFEST)
        signed.manifest += models_pb2.Manifest(engine="python").SerializeToString()
        with pytest.raises(ManifestRefused, match="altered"):
            verify_manifest(signed, {bytes(self.KEY.verify_key)})

    def test_a_signature_over_the_bare_bytes_is_not_one_over_a_manifest(self) -> None:
        signed = sign_manifest(self.KEY, self.MANIFEST)
        signed.signature = self.KEY.sign(signed.manifest).signature
        with pytest.raises(ManifestRefused):
            verify_manifest(signed, {bytes(self.KEY.verify_key)})

    def test_signers_are_read_from_a_file(self, tmp_path: Path) -> None:
        file = tmp_path / "signers"
        file.write_text(f"# operators\n{bytes(self.KEY.verify_key).hex()}  # me\n\n")
        assert read_trusted_signers(file) == {bytes(self.KEY.verify_key)}

    @pytest.mark.parametrize("content", ["zz", "abcd", None])
    def test_a_bad_signers_file_is_one_clear_error(self, tmp_path: Path, content: str | None) -> None:
        file = tmp_path / "signers"
        if content is not None:
            file.write_text(content)
        with pytest.raises(FailedPrecondition, match="signers"):
            read_trusted_signers(file)
