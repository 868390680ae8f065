"""OpenSSF model-signing bundles over model folders, made and verified by the real library."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

import pytest
import typer
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from typer.testing import CliRunner

from cli.signatures import BUNDLE, BundleRefused, check_before_push, make_bundle_key, sign_bundle, verify_bundle
from cli.signatures_commands import add_bundle_commands
from runtime.errors import FailedPrecondition

INSTALLED = importlib.util.find_spec("model_signing") is not None
needs_library = pytest.mark.skipif(not INSTALLED, reason="the extra model-signing is not installed")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "digits"
    (made / "extra").mkdir(parents=True)
    (made / "model.onnx").write_bytes(b"weights" * 1000)
    (made / "extra" / "labels.txt").write_text("zero\none\n")
    return made


@pytest.fixture
def key(tmp_path: Path) -> Path:
    private_key = tmp_path / "maker.pem"
    make_bundle_key(private_key)
    return private_key


def public(key: Path) -> Path:
    return key.with_suffix(".pub")


@needs_library
def test_a_folder_is_as_it_was_signed(folder: Path, key: Path) -> None:
    assert sign_bundle(folder, key) == folder / BUNDLE
    assert verify_bundle(folder, public(key)) == 2
    assert check_before_push(folder, public(key)) == 2
    assert sign_bundle(folder, key), "again, over the bundle that is there"
    assert verify_bundle(folder, public(key)) == 2


@needs_library
@pytest.mark.parametrize("file", ["model.onnx", "extra/labels.txt"])
def test_one_flipped_bit_is_refused(folder: Path, key: Path, file: str) -> None:
    sign_bundle(folder, key)
    content = bytearray((folder / file).read_bytes())
    content[-1] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(BundleRefused, match=file):
        verify_bundle(folder, public(key))


@needs_library
def test_files_that_are_gone_or_were_added_are_refused(folder: Path, key: Path) -> None:
    sign_bundle(folder, key)
    (folder / "custom.py").write_text("import os")
    with pytest.raises(BundleRefused, match=r"custom\.py"):
        verify_bundle(folder, public(key))
    (folder / "custom.py").unlink()
    (folder / "model.onnx").unlink()
    with pytest.raises(BundleRefused):
        verify_bundle(folder, public(key))


@needs_library
def test_a_description_may_be_written_beside_what_others_signed(folder: Path, key: Path) -> None:
    sign_bundle(folder, key)
    (folder / "model.toml").write_text("name = 'digits'")
    assert verify_bundle(folder, public(key)) == 2
    sign_bundle(folder, key)
    (folder / "model.toml").write_text("name = 'letters'")
    with pytest.raises(BundleRefused, match=r"model\.toml"):
        verify_bundle(folder, public(key))


@needs_library
def test_another_key_is_refused(folder: Path, key: Path, tmp_path: Path) -> None:
    sign_bundle(folder, key)
    other = make_bundle_key(tmp_path / "other.pem")
    with pytest.raises(BundleRefused):
        verify_bundle(folder, other)


@needs_library
@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\xfe", b'{"dsseEnvelope": {"payload": "", "signatures": []}}', b"[[[["])
def test_whatever_lies_in_a_bundle_is_refused_and_not_fallen_over(folder: Path, key: Path, content: bytes) -> None:
    (folder / BUNDLE).write_bytes(content)
    with pytest.raises(BundleRefused):
        verify_bundle(folder, public(key))


@needs_library
@pytest.mark.parametrize("part", ["payload", "sig"])
def test_an_altered_bundle_is_refused(folder: Path, key: Path, part: str) -> None:
    sign_bundle(folder, key)
    text = (folder / BUNDLE).read_text()
    at = text.index(f'"{part}"') + len(part) + 30
    (folder / BUNDLE).write_text(text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :])
    with pytest.raises(BundleRefused):
        verify_bundle(folder, public(key))


@needs_library
def test_a_bundle_over_pieces_is_refused_in_words(folder: Path, key: Path) -> None:
    hashing, signing = (importlib.import_module(f"model_signing.{name}") for name in ("hashing", "signing"))
    pieces = hashing.Config().use_shard_serialization(shard_size=1000).set_ignored_paths(paths=[folder / BUNDLE])
    signing.Config().set_hashing_config(pieces).use_elliptic_key_signer(private_key=key).sign(folder, folder / BUNDLE)
    with pytest.raises(BundleRefused, match="shards"):
        verify_bundle(folder, public(key))


@needs_library
def test_the_commands(folder: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    add_bundle_commands(app)
    run = CliRunner().invoke
    private_key = tmp_path / "mine.pem"
    for arguments in (
        ["bundle-key", str(private_key)],
        ["sign-bundle", str(folder), "--key", str(private_key)],
        ["verify-bundle", str(folder), "--key", str(public(private_key))],
    ):
        done = run(app, arguments)
        assert done.exit_code == 0, done.output
    assert "2 files" in done.output
    (folder / "model.onnx").write_bytes(b"other")
    done = run(app, ["verify-bundle", str(folder), "--key", str(public(private_key))])
    assert done.exit_code == 1
    assert "model.onnx" in done.output
    assert "Traceback" not in done.output


@pytest.mark.skipif(INSTALLED, reason="the extra model-signing is installed")
def test_without_the_library_it_is_said_how_to_get_it(folder: Path, key: Path) -> None:
    (folder / BUNDLE).write_text("{}")
    for work in (lambda: sign_bundle(folder, key), lambda: verify_bundle(folder, public(key))):
        with pytest.raises(FailedPrecondition, match=r"penstock\[model-signing\]"):
            work()


def test_a_bundle_that_nobody_can_check_stops_the_push(folder: Path) -> None:
    assert check_before_push(folder, None) == 0
    (folder / BUNDLE).write_text("{}")
    with pytest.raises(FailedPrecondition, match="--bundle-key"):
        check_before_push(folder, None)


def test_a_key_of_another_kind_is_refused_in_words(folder: Path, tmp_path: Path) -> None:
    pem = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "ed.pem").write_bytes(pem)
    (tmp_path / "none.pem").write_text("nothing")
    for file, words in (("ed.pem", "P-256"), ("none.pem", "PEM"), ("missing.pem", "PEM")):
        with pytest.raises(FailedPrecondition, match=words):
            sign_bundle(folder, tmp_path / file)


def test_a_key_is_made_for_its_owner_alone_and_never_written_over(key: Path) -> None:
    assert key.stat().st_mode & 0o077 == 0
    with pytest.raises(FailedPrecondition, match="exists already"):
        make_bundle_key(key)
