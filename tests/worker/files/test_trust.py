"""Whose word counts for a load, at first and later: endorsed signers, revoked ones, withdrawn versions."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import nacl.signing
import pytest
from penstock.registry.v1 import models_pb2

from runtime.errors import PenstockError, VersionWithdrawn
from runtime.identity import node_id_of
from runtime.ids import Digest, ModelName, ModelVersion, TenantId
from runtime.manifests import ManifestRefused, sign_endorsement
from runtime.notices import ModelNotice, NoticeBoard
from tests.support.manual_clock import ManualClock
from tests.worker.manifests import PUBLISHER, TRUSTED, MemoryRegistry, manifest_of
from worker.files.artifacts import Artifacts, FileDiffers, Prepared
from worker.files.cache import FileCache, open_cache
from worker.files.disk_files import FileSwapped

SIGNER = nacl.signing.SigningKey(b"s" * 32)
KEY = (ModelName("digits"), ModelVersion("1"))
FILES = {"model.onnx": b"weights", "labels.txt": b"one"}


class Rig:
    """A worker's files, a registry, a board and a clock to move."""

    def __init__(self, cache: FileCache) -> None:
        self.registry, self.board, self.clock = MemoryRegistry(), NoticeBoard(), ManualClock()
        self.incidents: list[tuple[str, str]] = []
        self.artifacts = Artifacts(
            cache, self.registry, lambda: TRUSTED, clock=self.clock, board=self.board, report=self._report
        )

    def _report(self, error: PenstockError, subject: str) -> None:
        self.incidents.append((error.reason, subject))

    def endorsed(self, *, by: nacl.signing.SigningKey = PUBLISHER, **changes: object) -> models_pb2.SignedEndorsement:
        fields: dict[str, object] = {"tenant": "default", "models": ["dig*"], "name": "ci", **changes}
        return sign_endorsement(
            by,
            models_pb2.Endorsement(ed25519_public_key=bytes(SIGNER.verify_key), **fields),  # type: ignore[arg-type]
        )

    def publish(self, endorsement: models_pb2.SignedEndorsement | None) -> Digest:
        return self.registry.publish(manifest_of(FILES), FILES, SIGNER, endorsement)

    async def prepare(self, digest: Digest) -> Prepared:
        return await self.artifacts.prepare(await self.artifacts.describe(digest, KEY), lambda _: None)

    def hear(self, **notice: object) -> None:
        base: dict[str, object] = {"model": KEY[0], "tenant": TenantId("default"), "shared_with": frozenset(), **notice}
        self.board.hear_model(ModelNotice(**base))  # type: ignore[arg-type]


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with open_cache(tmp_path / "cache", 1_000_000) as cache:
        yield Rig(cache)


async def test_an_endorsed_signers_model_is_loaded_and_again_without_the_registry(rig: Rig) -> None:
    digest = rig.publish(rig.endorsed())
    await rig.artifacts.release(await rig.prepare(digest))
    rig.registry.away = True
    await rig.prepare(digest)
    assert rig.incidents == []


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"by": SIGNER}, "not trusted here"),
        ({"tenant": "acme"}, "signs for tenant 'acme'"),
        ({"models": ["other*"]}, "may not sign model 'digits'"),
        ({"expires_at_ms": 1}, "has expired"),
        (None, "or endorse it"),
    ],
)
async def test_another_endorsement_is_none(rig: Rig, changes: dict[str, object] | None, why: str) -> None:
    digest = rig.publish(None if changes is None else rig.endorsed(**changes))  # type: ignore[arg-type]
    with pytest.raises(ManifestRefused, match=why):
        await rig.prepare(digest)
    assert rig.registry.fetched == []
    assert rig.incidents == [("MANIFEST_REFUSED", digest)]


async def test_what_was_cached_is_as_good_as_its_endorsement_is_now(rig: Rig) -> None:
    ends_ms = int(rig.clock.wall_s() * 1000) + 5_000
    digest = rig.publish(rig.endorsed(expires_at_ms=ends_ms))
    await rig.artifacts.release(await rig.prepare(digest))
    await rig.clock.advance(5.0)
    with pytest.raises(ManifestRefused, match="has expired"):
        await rig.prepare(digest)
    rig.publish(rig.endorsed(expires_at_ms=ends_ms + 5_000))
    await rig.prepare(digest)


async def test_a_withdrawn_version_and_a_revoked_signers_are_refused_though_they_are_cached(rig: Rig) -> None:
    digest = rig.publish(rig.endorsed())
    await rig.artifacts.release(await rig.prepare(digest))
    rig.hear(withdrawn=frozenset([digest]))
    with pytest.raises(VersionWithdrawn, match="was withdrawn; use another one"):
        await rig.prepare(digest)
    rig.hear(withdrawn_versions=frozenset(["1"]))
    with pytest.raises(VersionWithdrawn):
        await rig.prepare(digest)
    rig.hear(revoked_signers=frozenset([node_id_of(bytes(SIGNER.verify_key))]))
    with pytest.raises(ManifestRefused, match="was revoked"):
        await rig.prepare(digest)
    rig.hear(revoked_signers=frozenset(["another"]), withdrawn=frozenset(["f" * 64]), withdrawn_versions=frozenset(["2"]))
    await rig.prepare(digest)


async def test_one_that_is_withdrawn_while_its_files_come_is_not_laid_out(rig: Rig, tmp_path: Path) -> None:
    digest = rig.publish(rig.endorsed())
    rig.registry.held = asyncio.Event()
    loading = asyncio.ensure_future(rig.prepare(digest))
    while not rig.registry.fetched:
        await asyncio.sleep(0)
    rig.hear(withdrawn=frozenset([digest]))
    rig.registry.held.set()
    with pytest.raises(VersionWithdrawn):
        await loading
    assert not list((tmp_path / "cache" / "models").iterdir())


async def test_what_is_not_what_it_should_be_is_reported_and_what_merely_fails_is_not(rig: Rig) -> None:
    digest = rig.publish(rig.endorsed())
    rig.registry.breaks_after_bytes = 0
    with pytest.raises(PenstockError, match="broke"):
        await rig.prepare(digest)
    assert rig.incidents == []
    sha256 = next(iter(rig.registry.files))
    rig.registry.files[sha256] = b"altered"
    with pytest.raises(FileDiffers):
        await rig.prepare(digest)
    assert rig.incidents == [("MODEL_FILE_DIFFERS", sha256)] * 2 + [("MODEL_FILE_DIFFERS", digest)]


async def test_a_file_swapped_under_an_open_model_is_reported(rig: Rig) -> None:
    prepared = await rig.prepare(rig.publish(rig.endorsed()))
    (prepared.folder / "model.onnx").unlink()
    (prepared.folder / "model.onnx").write_bytes(b"weighty")
    with pytest.raises(FileSwapped):
        await rig.artifacts.check(prepared)
    assert rig.incidents == [("MODEL_FILE_SWAPPED", prepared.spec.digest)]
