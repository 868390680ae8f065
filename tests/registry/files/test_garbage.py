"""Collections on real databases: what goes, what stays, and what happens beside them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError

from registry.files.collection import Collected
from registry.files.errors import CollectionBusy, StoreUnavailable
from registry.files.garbage import collecting
from registry.files.local import LocalObjects
from registry.files.types import object_prefix
from runtime.ids import Digest
from runtime.sealed_chunks import CHUNK_BYTES, OVERHEAD_BYTES
from tests.registry.files.rig import Rig, content_of, rig_on, sha256_of
from tests.registry.harness import OPERATOR, Ground, ground_on

ONE, TWO, THREE = (content_of(1000 + seed, seed) for seed in range(3))


def stored_bytes(*contents: bytes) -> int:
    return sum(len(content) + OVERHEAD_BYTES for content in contents)


async def test_what_no_version_names_goes_after_its_grace(rig: Rig) -> None:
    for content in (ONE, TWO):
        await rig.upload(content)
    await rig.publish(ONE)
    assert await rig.files.garbage.collect() == Collected()
    rig.later(days=1.5)
    await rig.upload(THREE)
    would = await rig.files.garbage.collect(dry_run=True)
    assert would == Collected(files=1, freed_bytes=len(TWO))
    assert await rig.ground.count("files") == 3, "a dry run deletes nothing"
    assert len(await rig.keys()) == 3
    assert await rig.files.garbage.collect(OPERATOR) == Collected(files=1, freed_bytes=stored_bytes(TWO))
    assert ("file.collect", sha256_of(TWO), "done") in await rig.ground.actions()
    assert await rig.files.garbage.collect() == Collected()
    assert {content for content in (ONE, TWO, THREE) if (await rig.begin(content)).complete} == {ONE, THREE}
    assert len(await rig.keys()) == 2


async def test_a_publisher_that_says_again_that_it_needs_a_file_keeps_it(rig: Rig) -> None:
    await rig.upload(ONE)
    rig.later(days=1.5)
    assert (await rig.begin(ONE)).complete
    assert await rig.files.garbage.collect() == Collected()
    rig.later(days=1.5)
    assert (await rig.files.garbage.collect()).files == 1


async def test_a_tenant_stops_paying_for_what_only_others_use(rig: Rig) -> None:
    for tenant in ("acme", "globex"):
        await rig.upload(ONE, tenant)
    await rig.publish(ONE, tenant="acme")
    rig.later(days=1.5)
    assert await rig.files.garbage.collect() == Collected()
    usages = {usage.tenant: usage.used_bytes for usage in await rig.store.usages(None)}
    assert usages == {"acme": len(ONE), "globex": 0, "default": 0}
    assert not (await rig.begin(ONE, "globex")).complete


async def test_uploads_that_nobody_goes_on_with_go(rig: Rig) -> None:
    begun = await rig.begin(ONE)
    await rig.send(begun, ONE)
    rig.later(days=6.5)
    fresh = await rig.begin(TWO)
    await rig.send(fresh, TWO)
    assert await rig.files.garbage.collect() == Collected()
    rig.later(days=1)
    assert await rig.files.garbage.collect(dry_run=True) == Collected(uploads=1, freed_bytes=len(ONE))
    assert await rig.files.garbage.collect() == Collected(uploads=1, freed_bytes=stored_bytes(ONE))
    await rig.complete(fresh)
    await rig.upload(ONE)


async def test_objects_that_no_row_names_go_and_those_of_others_stay(rig: Rig, tmp_path: Path) -> None:
    await rig.upload(ONE)
    begun = await rig.begin(TWO)
    await rig.send(begun, TWO)
    for key in (f"{object_prefix(b'x' * 16)}0", f"{object_prefix(b'x' * 16)}1", "objects/notes/1"):
        await rig.objects.put(key, b"12345")
    rig.ground.clock.now_s = 4_000_000_000.0  # objects bear the machine's time
    await rig.upload(THREE)
    await rig.begin(ONE)
    await rig.begin(TWO)
    assert await rig.files.garbage.collect(dry_run=True) == Collected(orphans=2, freed_bytes=10)
    assert await rig.files.garbage.collect() == Collected(orphans=2, freed_bytes=10)
    assert "objects/notes/1" in await rig.keys()
    await rig.complete(begun)


async def test_two_at_once_are_one_after_the_other(ground: Ground, database_address: str, tmp_path: Path) -> None:
    class Halting(LocalObjects):
        reached, may_go = asyncio.Event(), asyncio.Event()

        async def delete(self, keys: Sequence[str]) -> None:
            self.reached.set()
            await self.may_go.wait()
            await super().delete(keys)

    objects = Halting(tmp_path)
    async with ground_on(database_address) as other:
        one, two = rig_on(ground, objects), rig_on(other, objects)
        await one.upload(ONE)
        one.later(days=2)
        two.later(days=2)
        first = asyncio.create_task(one.files.garbage.collect())
        await objects.reached.wait()
        with pytest.raises(CollectionBusy):
            await one.files.garbage.collect()
        if "postgresql" in database_address:
            with pytest.raises(CollectionBusy):
                await two.files.garbage.collect()
        objects.may_go.set()
        assert (await first).files == 1
        assert await two.files.garbage.collect() == Collected()


async def test_publishing_beside_collecting_never_names_what_is_gone(
    ground: Ground, database_address: str, tmp_path: Path
) -> None:
    """Whoever is first wins: the version is published and its file stays, or it is refused and the file is gone."""
    contents = [content_of(100, 100 + seed) for seed in range(30)]
    async with ground_on(database_address) as other:
        publisher, collector = rig_on(ground, tmp_path), rig_on(other, tmp_path)
        for content in contents:
            await publisher.upload(content)
        collector.later(days=2)

        async def publish(content: bytes) -> bool:
            try:
                await publisher.publish(content)
            except IntegrityError:
                return False
            return True

        collecting_now = asyncio.create_task(collector.files.garbage.collect())
        published = await asyncio.gather(*(publish(content) for content in contents))
        collected = await collecting_now
        assert collected.files == published.count(False)
        for content, kept in zip(contents, published, strict=True):
            file = await publisher.store.file(Digest(sha256_of(content)))
            assert (file is not None) is kept
            if file is not None:
                await publisher.objects.get(f"{object_prefix(file.object_id)}0", 0, 100 + OVERHEAD_BYTES)
        assert len(await publisher.keys()) == published.count(True)


async def test_beginning_beside_collecting_is_told_the_truth(ground: Ground, database_address: str, tmp_path: Path) -> None:
    """A file that `begin` called complete is there to be published, although its grace was over."""
    contents = [content_of(100, 200 + seed) for seed in range(30)]
    async with ground_on(database_address) as other:
        publisher, collector = rig_on(ground, tmp_path), rig_on(other, tmp_path)
        for content in contents:
            await publisher.upload(content)
        publisher.later(days=2)
        collector.later(days=2)
        collecting_now = asyncio.create_task(collector.files.garbage.collect())
        begun = await asyncio.gather(*(publisher.begin(content) for content in contents))
        collected = await collecting_now
        kept = [content for content, each in zip(contents, begun, strict=True) if each.complete]
        assert collected.files == len(contents) - len(kept)
        await publisher.publish(*kept)


async def test_uploading_anew_beside_collecting_ends_with_the_file(
    ground: Ground, database_address: str, tmp_path: Path
) -> None:
    """Another tenant completes the very file that goes: it keeps the old object, or its own."""
    contents = [content_of(CHUNK_BYTES // 8, 300 + seed) for seed in range(10)]
    async with ground_on(database_address) as other:
        uploader, collector = rig_on(ground, tmp_path), rig_on(other, tmp_path)
        begun = []
        for content in contents:
            await uploader.upload(content, "acme")
            begun.append(await uploader.begin(content, "globex"))
            await uploader.send(begun[-1], content, tenant="globex")
        uploader.later(days=2)
        collector.later(days=2)
        await asyncio.gather(collector.files.garbage.collect(), *(uploader.complete(each, "globex") for each in begun))
        for content in contents:
            file = await uploader.store.file(Digest(sha256_of(content)))
            assert file is not None
            await uploader.objects.get(f"{object_prefix(file.object_id)}0", 0, len(content) + OVERHEAD_BYTES)
        await uploader.publish(*contents, tenant="globex")
        assert len(await uploader.keys()) == len(contents)


@pytest.mark.parametrize("failure", [StoreUnavailable("not now"), RuntimeError("a bug of ours")])
async def test_the_loop_goes_on_after_a_failure_at_moments_of_its_own(
    sqlite_rig: Rig, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    garbage, slept, collected = sqlite_rig.files.garbage, list[float](), list[int]()

    async def collect(*_: object, **__: object) -> Collected:
        collected.append(1)
        if len(collected) == 1:
            raise failure
        return Collected(files=1)

    class Ending(Exception):
        pass

    class Clock:
        def monotonic_s(self) -> float:
            return 0.0

        def wall_s(self) -> float:
            return 0.0

        async def sleep(self, delay_s: float) -> None:
            slept.append(delay_s)
            if len(slept) == 4:
                raise Ending

    monkeypatch.setattr(type(garbage), "collect", collect)
    with pytest.raises(Ending):
        await collecting(garbage, Clock(), 3600.0, random.Random(1))
    assert len(collected) == 3
    assert len(set(slept)) == 4
    assert all(1800 <= delay_s <= 5400 for delay_s in slept)
