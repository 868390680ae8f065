"""From an ordered digest to a folder an engine may open: what is believed, what is fetched, what is kept."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import nacl.signing
import pytest

from runtime.errors import Unavailable
from runtime.ids import Digest, ModelName, ModelVersion
from runtime.manifests import ManifestRefused
from tests.worker.manifests import CHUNK_BYTES, TRUSTED, MemoryRegistry, manifest_of, sha256_of
from worker.engine import ModelRefused
from worker.files.artifacts import Artifacts, FileDiffers, Prepared
from worker.files.cache import CacheInUse, FileCache, open_cache
from worker.files.disk_files import CacheFull, FileSwapped
from worker.files.manifest import ManifestFile

WEIGHTS, VOCABULARY = os.urandom(10 * CHUNK_BYTES), b"abc"
KEY = (ModelName("digits"), ModelVersion("1"))
FILES = {"model.onnx": WEIGHTS, "text/vocabulary.json": VOCABULARY}


@pytest.fixture
def registry() -> MemoryRegistry:
    return MemoryRegistry()


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[FileCache]:
    with open_cache(tmp_path / "cache", 1_000_000) as opened:
        yield opened


@pytest.fixture
def artifacts(cache: FileCache, registry: MemoryRegistry) -> Artifacts:
    return Artifacts(cache, registry, lambda: TRUSTED)


async def prepare(artifacts: Artifacts, digest: Digest) -> Prepared:
    return await artifacts.prepare(await artifacts.describe(digest, KEY), lambda _: None)


def content_of(prepared: Prepared) -> dict[str, bytes]:
    folder = prepared.folder
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def cached(folder: Path, content: bytes) -> Path:
    return folder / "cache" / "files" / sha256_of(content)


def rewritten(path: Path, content: bytes) -> None:
    """In place, as somebody does who may."""
    path.chmod(0o600)
    path.write_bytes(content)


def partial(folder: Path, content: bytes) -> Path:
    return folder / "cache" / "partial" / sha256_of(content)


async def test_a_model_is_fetched_verified_and_laid_out(artifacts: Artifacts, registry: MemoryRegistry) -> None:
    digest = registry.publish_files(FILES)
    came: list[int] = []
    description = await artifacts.describe(digest, KEY)
    prepared = await artifacts.prepare(description, came.append)
    assert content_of(prepared) == FILES
    assert (prepared.spec.model, prepared.spec.version, prepared.spec.digest) == ("digits", "1", digest)
    assert sum(came) == len(WEIGHTS) + len(VOCABULARY)


async def test_a_second_load_asks_the_registry_for_nothing_and_needs_none(
    artifacts: Artifacts, registry: MemoryRegistry, tmp_path: Path
) -> None:
    digest = registry.publish_files(FILES)
    prepared = await prepare(artifacts, digest)
    await artifacts.release(prepared)
    assert not prepared.folder.exists()
    registry.away = True
    assert content_of(await prepare(artifacts, digest)) == FILES
    assert registry.asked == [digest]
    assert len(registry.fetched) == 2


async def test_files_that_versions_share_are_fetched_once(artifacts: Artifacts, registry: MemoryRegistry) -> None:
    first, second = registry.publish_files(FILES), registry.publish_files({**FILES, "more": b"more"}, version="2")
    registry.held = asyncio.Event()
    loads = [asyncio.ensure_future(prepare(artifacts, digest)) for digest in (first, second)]
    await asyncio.sleep(0.05)
    registry.held.set()
    prepared = await asyncio.gather(*loads)
    assert [len(content_of(each)) for each in prepared] == [2, 3]
    assert sorted(sha256 for sha256, _ in registry.fetched) == sorted(
        sha256_of(each) for each in (WEIGHTS, VOCABULARY, b"more")
    )


async def test_a_broken_transfer_goes_on_where_it_stopped(artifacts: Artifacts, registry: MemoryRegistry) -> None:
    digest = registry.publish_files({"model.onnx": WEIGHTS})
    registry.breaks_after_bytes = 4 * CHUNK_BYTES
    with pytest.raises(Unavailable):
        await prepare(artifacts, digest)
    assert content_of(await prepare(artifacts, digest)) == {"model.onnx": WEIGHTS}
    assert registry.fetched == [(sha256_of(WEIGHTS), 0), (sha256_of(WEIGHTS), 4 * CHUNK_BYTES)]


async def test_a_transfer_goes_on_also_after_a_restart(tmp_path: Path, registry: MemoryRegistry) -> None:
    digest = registry.publish_files({"model.onnx": WEIGHTS})
    registry.breaks_after_bytes = 4 * CHUNK_BYTES
    with open_cache(tmp_path / "cache", 1_000_000) as cache, pytest.raises(Unavailable):
        await prepare(Artifacts(cache, registry, lambda: TRUSTED), digest)
    with open_cache(tmp_path / "cache", 1_000_000) as cache:
        await prepare(Artifacts(cache, registry, lambda: TRUSTED), digest)
    assert registry.fetched[-1] == (sha256_of(WEIGHTS), 4 * CHUNK_BYTES)


async def test_a_registry_that_ends_a_file_early_may_be_asked_again(artifacts: Artifacts, registry: MemoryRegistry) -> None:
    digest = registry.publish_files({"model.onnx": WEIGHTS})
    registry.files[sha256_of(WEIGHTS)] = WEIGHTS[: 3 * CHUNK_BYTES]
    with pytest.raises(Unavailable, match="3000 of 10000 bytes"):
        await prepare(artifacts, digest)
    registry.files[sha256_of(WEIGHTS)] = WEIGHTS
    assert content_of(await prepare(artifacts, digest)) == {"model.onnx": WEIGHTS}


async def test_a_part_that_was_altered_on_disk_is_fetched_anew(
    artifacts: Artifacts, registry: MemoryRegistry, tmp_path: Path
) -> None:
    digest = registry.publish_files({"model.onnx": WEIGHTS})
    registry.breaks_after_bytes = 4 * CHUNK_BYTES
    with pytest.raises(Unavailable):
        await prepare(artifacts, digest)
    partial(tmp_path, WEIGHTS).write_bytes(b"x" * 4 * CHUNK_BYTES)
    assert content_of(await prepare(artifacts, digest)) == {"model.onnx": WEIGHTS}
    assert [offset for _, offset in registry.fetched] == [0, 4 * CHUNK_BYTES, 0]


@pytest.mark.parametrize("left", [WEIGHTS, WEIGHTS + b"more"], ids=["whole", "too long"])
async def test_a_part_that_is_whole_needs_no_transfer_and_one_too_long_is_dropped(
    artifacts: Artifacts, registry: MemoryRegistry, tmp_path: Path, left: bytes
) -> None:
    digest = registry.publish_files({"model.onnx": WEIGHTS})
    partial(tmp_path, WEIGHTS).write_bytes(left)
    assert content_of(await prepare(artifacts, digest)) == {"model.onnx": WEIGHTS}
    assert registry.fetched == ([] if left == WEIGHTS else [(sha256_of(WEIGHTS), 0)])


async def test_a_file_altered_in_the_cache_is_fetched_anew(
    artifacts: Artifacts, registry: MemoryRegistry, tmp_path: Path
) -> None:
    digest = registry.publish_files(FILES)
    await artifacts.release(await prepare(artifacts, digest))
    altered = bytearray(WEIGHTS)
    altered[5000] ^= 1
    rewritten(cached(tmp_path, WEIGHTS), bytes(altered))
    assert content_of(await prepare(artifacts, digest)) == FILES
    assert [sha256 for sha256, _ in registry.fetched].count(sha256_of(WEIGHTS)) == 2


@pytest.mark.parametrize(
    "sent", [b"x" * len(WEIGHTS), WEIGHTS + b"more", b"y" * 5 * len(WEIGHTS)], ids=["other", "longer", "far longer"]
)
async def test_what_comes_wrong_twice_is_data_loss_and_is_not_kept(
    artifacts: Artifacts, registry: MemoryRegistry, tmp_path: Path, sent: bytes
) -> None:
    digest = registry.publish_files({"model.onnx": WEIGHTS})
    registry.files[sha256_of(WEIGHTS)] = sent
    with pytest.raises(FileDiffers, match="came twice"):
        await prepare(artifacts, digest)
    assert len(registry.fetched) == 2
    assert not cached(tmp_path, WEIGHTS).exists()
    assert partial(tmp_path, WEIGHTS).stat().st_size == 0
    registry.files[sha256_of(WEIGHTS)] = WEIGHTS
    assert content_of(await prepare(artifacts, digest)) == {"model.onnx": WEIGHTS}


async def test_only_a_trusted_signers_word_counts(artifacts: Artifacts, registry: MemoryRegistry) -> None:
    digest = registry.publish(manifest_of(FILES), FILES, nacl.signing.SigningKey(b"q" * 32))
    with pytest.raises(ManifestRefused, match="not trusted here"):
        await artifacts.describe(digest, KEY)


async def test_trust_that_was_withdrawn_counts_for_what_is_cached_too(cache: FileCache, registry: MemoryRegistry) -> None:
    trusted = set(TRUSTED)
    artifacts = Artifacts(cache, registry, lambda: trusted)
    digest = registry.publish_files(FILES)
    await artifacts.release(await prepare(artifacts, digest))
    trusted.clear()
    with pytest.raises(ManifestRefused, match="not trusted here"):
        await artifacts.describe(digest, KEY)


async def test_another_manifest_than_the_ordered_one_is_refused(artifacts: Artifacts, registry: MemoryRegistry) -> None:
    ordered, other = registry.publish_files(FILES), registry.publish_files(FILES, version="2")
    registry.manifests[ordered] = registry.manifests[other]
    with pytest.raises(ManifestRefused, match=f"{ordered} was asked for, and {other} came"):
        await artifacts.describe(ordered, KEY)


async def test_a_manifest_altered_in_the_cache_is_fetched_anew(
    artifacts: Artifacts, registry: MemoryRegistry, tmp_path: Path
) -> None:
    digest = registry.publish_files(FILES)
    await artifacts.describe(digest, KEY)
    file = tmp_path / "cache" / "manifests" / digest
    for damage in (b"", b"\xff\xff", file.read_bytes()[:-1] + b"\x00"):
        file.write_bytes(damage)
        assert (await artifacts.describe(digest, KEY)).spec.model == "digits"
    assert len(registry.asked) == 4


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "D" * 64, "d" * 63])
async def test_an_ordered_digest_that_is_none_is_refused(artifacts: Artifacts, registry: MemoryRegistry, digest: str) -> None:
    with pytest.raises(ManifestRefused, match="is no sha256"):
        await artifacts.describe(Digest(digest), KEY)
    assert registry.asked == []


@pytest.mark.parametrize(
    "path", ["../outside", "/etc/passwd", "a//b", "a/./b", "a/../../b", "a\\b", "", "a/", "nul\x00", ".", "model.onnx/inside"]
)
async def test_no_path_leads_out_of_the_folder(
    artifacts: Artifacts, registry: MemoryRegistry, tmp_path: Path, path: str
) -> None:
    digest = registry.publish_files({"model.onnx": b"1", path: b"2"})
    with pytest.raises(ModelRefused, match="path"):
        await prepare(artifacts, digest)
    assert registry.fetched == []


async def test_a_file_named_by_no_sha256_and_a_manifest_without_files_are_refused(
    artifacts: Artifacts, registry: MemoryRegistry
) -> None:
    manifest = manifest_of(FILES)
    manifest.files[0].sha256 = "../model"
    with pytest.raises(ModelRefused, match="64 hex digits"):
        await artifacts.describe(registry.publish(manifest), KEY)
    with pytest.raises(ModelRefused, match="0 files"):
        await artifacts.describe(registry.publish(manifest_of({})), KEY)
    twice = manifest_of({"a": b"1"})
    twice.files.add().CopyFrom(twice.files[0])
    with pytest.raises(ModelRefused, match="twice"):
        await artifacts.describe(registry.publish(twice), KEY)


async def test_the_cache_lets_go_of_what_was_used_longest_ago_and_never_of_what_is_loaded(
    tmp_path: Path, registry: MemoryRegistry
) -> None:
    contents = [bytes([number]) * 400 for number in range(4)]
    digests = [registry.publish_files({"m": content}, model=f"m{number}") for number, content in enumerate(contents)]
    with open_cache(tmp_path / "cache", 1000) as cache:
        artifacts = Artifacts(cache, registry, lambda: TRUSTED)
        first = await prepare(artifacts, digests[0])
        await artifacts.release(await prepare(artifacts, digests[1]))
        await artifacts.release(await prepare(artifacts, digests[2]))
        assert not cached(tmp_path, contents[1]).exists()
        await prepare(artifacts, digests[2])
        with pytest.raises(CacheFull, match=re.escape("--cache-bytes")):
            await prepare(artifacts, digests[3])
        assert {file.name for file in (tmp_path / "cache" / "files").iterdir()} == {
            sha256_of(contents[0]),
            sha256_of(contents[2]),
        }
        assert content_of(first) == {"m": contents[0]}
        await artifacts.release(first)
        await prepare(artifacts, digests[3])
        assert cache.used_bytes == 800


async def test_a_restart_knows_what_is_there_and_drops_what_exceeds_a_smaller_limit(
    tmp_path: Path, registry: MemoryRegistry
) -> None:
    contents = [bytes([number]) * 400 for number in range(3)]
    digests = [registry.publish_files({"m": content}, model=f"m{number}") for number, content in enumerate(contents)]
    with open_cache(tmp_path / "cache", 2000) as cache:
        artifacts = Artifacts(cache, registry, lambda: TRUSTED)
        for number, digest in enumerate(digests):
            await prepare(artifacts, digest)
            os.utime(cached(tmp_path, contents[number]), (1000 + (number + 1) % 3, 1000 + (number + 1) % 3))
    (tmp_path / "cache" / "files" / "stranger").write_bytes(b"not ours")
    with open_cache(tmp_path / "cache", 900) as cache:
        assert cache.used_bytes == 800
        assert not cached(tmp_path, contents[2]).exists(), "the one used longest ago"
        assert not list((tmp_path / "cache" / "models").iterdir())


def test_a_cache_belongs_to_one_worker(tmp_path: Path) -> None:
    with open_cache(tmp_path / "cache", 1), pytest.raises(CacheInUse, match="--cache-dir"), open_cache(tmp_path / "cache", 1):
        pass
    with open_cache(tmp_path / "cache", 1):
        pass


async def test_a_cancelled_fetch_leaves_its_part_and_pins_nothing(
    artifacts: Artifacts, cache: FileCache, registry: MemoryRegistry
) -> None:
    digest = registry.publish_files({"model.onnx": WEIGHTS})
    registry.held = asyncio.Event()
    loading = asyncio.ensure_future(prepare(artifacts, digest))
    while not registry.fetched:
        await asyncio.sleep(0.001)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert cache._pins == {}
    registry.held.set()
    assert content_of(await prepare(artifacts, digest)) == {"model.onnx": WEIGHTS}


async def test_a_disk_without_room_is_named(tmp_path: Path, registry: MemoryRegistry) -> None:
    digest = registry.publish_files({"model.onnx": os.urandom(1_100_000)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_cache(tmp_path / "cache", 10_000_000) as cache:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
        try:
            with pytest.raises(CacheFull, match="no room left"):
                await prepare(Artifacts(cache, registry, lambda: TRUSTED), digest)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


async def test_where_the_file_system_has_no_hard_links_files_are_copied(
    artifacts: Artifacts, registry: MemoryRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def linkless(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", linkless)
    assert content_of(await prepare(artifacts, registry.publish_files(FILES))) == FILES


def exchanged(path: Path, content: bytes) -> None:
    """Another file in its place."""
    path.unlink()
    path.write_bytes(content)


async def test_a_file_exchanged_after_it_was_verified_is_noticed_before_the_model_answers(
    artifacts: Artifacts, registry: MemoryRegistry
) -> None:
    prepared = await prepare(artifacts, registry.publish_files(FILES))
    await artifacts.check(prepared)
    exchanged(prepared.folder / "model.onnx", bytes(len(WEIGHTS)))
    with pytest.raises(FileSwapped, match="was changed after it was verified"):
        await artifacts.check(prepared)


async def test_one_exchanged_in_the_cache_between_its_check_and_the_layout_is_noticed(
    artifacts: Artifacts, cache: FileCache, registry: MemoryRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = registry.publish_files(FILES)
    assemble = cache.assemble

    def late(digest: Digest, files: Iterable[ManifestFile]) -> Path:
        exchanged(cached(tmp_path, WEIGHTS), bytes(len(WEIGHTS)))
        return assemble(digest, files)

    with monkeypatch.context() as patch:
        patch.setattr(cache, "assemble", late)
        with pytest.raises(FileSwapped):
            await prepare(artifacts, digest)
    assert content_of(await prepare(artifacts, digest)) == FILES, "the next load verifies and fetches anew"


async def test_a_link_put_in_the_place_of_a_file_is_not_followed(
    artifacts: Artifacts, registry: MemoryRegistry, tmp_path: Path
) -> None:
    digest = registry.publish_files(FILES)
    await artifacts.release(await prepare(artifacts, digest))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(WEIGHTS)
    cached(tmp_path, WEIGHTS).unlink()
    cached(tmp_path, WEIGHTS).symlink_to(elsewhere)
    assert content_of(await prepare(artifacts, digest)) == FILES
    assert not cached(tmp_path, WEIGHTS).is_symlink()


async def test_files_in_the_cache_are_not_written_to_by_who_opens_them_through_a_models_folder(
    artifacts: Artifacts, registry: MemoryRegistry
) -> None:
    prepared = await prepare(artifacts, registry.publish_files(FILES))
    assert {stat.S_IMODE(file.stat().st_mode) for file in prepared.folder.rglob("*") if file.is_file()} == {0o400}


async def test_loads_that_share_a_file_do_not_disturb_each_others_check(artifacts: Artifacts, registry: MemoryRegistry) -> None:
    first = await prepare(artifacts, registry.publish_files(FILES))
    second = await prepare(artifacts, registry.publish_files({**FILES, "more": b"more"}, version="2"))
    await artifacts.check(first)
    await artifacts.check(second)
    await artifacts.release(second)
    await artifacts.check(first)
