"""OpenSSF model-signing bundles: made over a model folder, and verified before a folder is pushed.

The one file that knows the `model_signing` library, an extra that is loaded only when a bundle is at hand. A bundle says who
made a model's files before they came here; what the mesh believes is the manifest that is signed at the push. Takes bundles
over whole files, made with a key on a NIST curve: the library does not take Ed25519, and at 1.1.1 it signs pieces of files
(shards) but does not verify them.
"""

from __future__ import annotations

import base64
import importlib
import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from runtime.errors import Code, FailedPrecondition, PenstockError
from runtime.identity import write_secret

BUNDLE = "model.sig"
MAX_BUNDLE_BYTES = 64 * 1024 * 1024
_NOT_SIGNED_FOR = frozenset({"model.toml", "config.pbtxt"})
"""What people write beside files that somebody else signed. A bundle may cover them; then they have to be as signed."""


class BundleRefused(PenstockError, code=Code.PERMISSION_DENIED, reason="BUNDLE_REFUSED"):
    """The folder is not what the bundle was made over, or another key made it."""


def make_bundle_key(private_key: Path) -> Path:
    """A P-256 key for its owner alone, and beside it the public one, whose path is returned."""
    public_key = private_key.with_suffix(".pub")
    if taken := [str(file) for file in (private_key, public_key) if file.exists()]:
        raise FailedPrecondition(f"{taken[0]} exists already; name another file, or move it away")
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_secret(private_key, pem)
    public_key.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return public_key


def sign_bundle(folder: Path, private_key: Path) -> Path:
    """Make the folder's bundle over all that lies in it, and return its path. Raises FailedPrecondition, BundleRefused."""
    bundle = folder / BUNDLE
    _curve_key(private_key, private=True)
    hashing, signing = _library("hashing"), _library("signing")
    try:
        covered = hashing.Config().set_ignored_paths(paths=[bundle], ignore_git_paths=True)
        signing.Config().set_hashing_config(covered).use_elliptic_key_signer(private_key=private_key).sign(folder, bundle)
    except Exception as error:  # the library raises whatever it stumbles over
        raise BundleRefused(f"cannot sign {folder}: {error}") from error
    return bundle


def verify_bundle(folder: Path, public_key: Path) -> int:
    """How many files the folder's bundle covers, all as they were signed. Raises FailedPrecondition, BundleRefused.

    A file that nobody signed is refused, but for the model's description.
    """
    bundle = folder / BUNDLE
    _curve_key(public_key, private=False)
    verifying = _library("verifying")
    try:
        if bundle.stat().st_size > MAX_BUNDLE_BYTES:
            raise ValueError(f"it has more than {MAX_BUNDLE_BYTES} bytes")
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
        predicate = _predicate(bundle)
        if (method := predicate["serialization"]["method"]) != "files":
            raise ValueError(f"it was made over {method}; bundles over whole files are taken")
        config.set_ignore_unsigned_files(True).verify(folder, bundle)
        signed = frozenset(str(resource["name"]) for resource in predicate["resources"])
    except Exception as error:  # as above: a bundle may hold anything
        reason = str(error) or type(error).__name__
        raise BundleRefused(f"{bundle} does not fit {folder} and {public_key}: {reason[:500]}") from error
    if unsigned := sorted(_paths(folder) - signed - _NOT_SIGNED_FOR - {BUNDLE}):
        raise BundleRefused(f"{folder} holds {len(unsigned)} files that {bundle} does not cover: {', '.join(unsigned[:10])}")
    return len(signed)


def check_before_push(folder: Path, public_key: Path | None) -> int:
    """How many files a bundle vouches for; 0: there is none, and no key was given that asks for one.

    A bundle that nobody can check is refused: who does not care for it removes it. Raises FailedPrecondition, BundleRefused.
    """
    if public_key is not None:
        return verify_bundle(folder, public_key)
    if not (folder / BUNDLE).exists():
        return 0
    raise FailedPrecondition(
        f"{folder} holds {BUNDLE}, which says who made the model; give the maker's public key with --bundle-key, "
        "or remove the file to push without looking at it"
    )


def _curve_key(file: Path, *, private: bool) -> None:
    """Said before the library does: it answers a key of another kind with a bug."""
    try:
        pem = file.read_bytes()
        key = serialization.load_pem_private_key(pem, None) if private else serialization.load_pem_public_key(pem)
    except (OSError, ValueError, TypeError) as error:
        kind = "private" if private else "public"
        raise FailedPrecondition(
            f"cannot read {file}: a {kind} key in PEM, without a password, is expected ({error})"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey):
        raise FailedPrecondition(
            f"{file} holds another kind of key; bundles take P-256, P-384 or P-521: make one with `penstock models bundle-key`"
        )


def _library(module: str) -> Any:
    try:
        return importlib.import_module(f"model_signing.{module}")
    except ImportError as error:
        raise FailedPrecondition(
            f"bundles need the extra model-signing ({error}); install it: pip install 'penstock[model-signing]'"
        ) from error


def _predicate(bundle: Path) -> Any:
    """What the bundle says. To be believed once it was verified."""
    envelope = json.loads(bundle.read_bytes())["dsseEnvelope"]
    return json.loads(base64.b64decode(envelope["payload"]))["predicate"]


def _paths(folder: Path) -> set[str]:
    """What a push would take along: `runtime.model_folder` leaves out what begins with a dot."""
    paths = {file.relative_to(folder) for file in folder.rglob("*") if not file.is_dir()}
    return {path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)}
