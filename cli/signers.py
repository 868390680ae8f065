"""What `penstock signers …` does: which keys may sign a tenant's models, by the word of the operator's own key.

Decides nothing about who may: consumers believe an endorsement only if a key that they trust signed it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from penstock.registry.v1 import models_pb2, models_pb2_grpc
from rich.text import Text

from cli.profile import Profile
from cli.tables import console, table
from runtime.errors import InvalidArgument
from runtime.identity import load_identity
from runtime.manifests import read_trusted_signers, sign_endorsement

_HEX = re.compile(r"[0-9a-fA-F]{64}")
_DAY_MS = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class NewSigner:
    name: str
    public_key: bytes
    tenant: str
    models: tuple[str, ...]
    """Patterns as in a shell."""
    days: float
    """0 = until it is revoked."""


def read_public_key(text: str) -> bytes:
    """An Ed25519 public key: 64 hex digits, a file with them, or a node's identity folder. Raises PenstockErrors."""
    if _HEX.fullmatch(text):
        return bytes.fromhex(text)
    path = Path(text)
    if path.is_dir():
        return load_identity(path).ed25519_public_key
    if not path.exists():
        raise InvalidArgument(
            f"{text!r} is neither 64 hex digits nor a file; give the public key, a file that holds it, or an identity folder"
        )
    keys = read_trusted_signers(path)
    if len(keys) != 1:
        raise InvalidArgument(f"{path} holds {len(keys)} keys; one is expected")
    return next(iter(keys))


async def add_signer(profile: Profile, wanted: NewSigner) -> None:
    """Endorse a key with the operator's own."""
    signer = await endorse(profile, wanted)
    console().print(
        Text(f"{signer.name} ({signer.signer_id}) may sign {_patterns(signer.models)} of tenant {signer.tenant}{_end(signer)}")
    )


async def endorse(profile: Profile, wanted: NewSigner) -> models_pb2.Signer:
    root = load_identity(Path(profile.operator_identity)).signing_key
    now_ms = int(time.time() * 1000)
    endorsement = models_pb2.Endorsement(
        tenant=wanted.tenant,
        ed25519_public_key=wanted.public_key,
        name=wanted.name,
        models=wanted.models,
        endorsed_at_ms=now_ms,
        expires_at_ms=now_ms + int(wanted.days * _DAY_MS) if wanted.days else 0,
    )
    async with profile.registry_channel() as registry:
        request = models_pb2.EndorseSignerRequest(endorsement=sign_endorsement(root, endorsement))
        return (await models_pb2_grpc.ModelServiceStub(registry).EndorseSigner(request)).signer


async def show_signers(profile: Profile, tenant: str) -> None:
    """A row per signer."""
    async with profile.registry_channel() as registry:
        request = models_pb2.ListSignersRequest(tenant=tenant)
        signers = (await models_pb2_grpc.ModelServiceStub(registry).ListSigners(request)).signers
    rows = table("signer", "tenant", "name", "models", "endorsed", "by", "state")
    for signer in signers:
        rows.add_row(
            signer.signer_id,
            signer.tenant,
            Text(signer.name),
            _patterns(signer.models),
            _day(signer.endorsed_at_ms),
            signer.endorsed_by,
            state_of(signer, time.time() * 1000),
        )
    nobody = "nobody is endorsed; models are signed by the keys that registry and workers trust by their file"
    console().print(rows if signers else nobody)


async def revoke_signer(profile: Profile, signer_id: str, tenant: str) -> None:
    """From now on nothing it signed is loaded, and nothing it signs is published."""
    async with profile.registry_channel() as registry:
        request = models_pb2.RevokeSignerRequest(signer_id=signer_id, tenant=tenant)
        signer = (await models_pb2_grpc.ModelServiceStub(registry).RevokeSigner(request)).signer
    console().print(Text(f"revoked {signer.signer_id} ({signer.name}) of tenant {signer.tenant}"))


def state_of(signer: models_pb2.Signer, now_ms: float) -> str:
    """Live, until when, expired or revoked."""
    if signer.revoked_at_ms:
        return f"revoked {_day(signer.revoked_at_ms)}"
    if not signer.expires_at_ms:
        return "live"
    return f"{'expired' if signer.expires_at_ms <= now_ms else 'until'} {_day(signer.expires_at_ms)}"


def _end(signer: models_pb2.Signer) -> str:
    return f" until {_day(signer.expires_at_ms)}" if signer.expires_at_ms else ""


def _patterns(models: Sequence[str]) -> str:
    return ", ".join(models) or "nothing"


def _day(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"
