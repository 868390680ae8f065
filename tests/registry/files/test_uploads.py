"""Files coming in: begun, received in parts, verified; by one tenant and by several; on both databases."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from registry.access.types import OtherTenant, Scope, ScopeRequired
from registry.files.data_keys import DataKeyAltered
from registry.files.errors import (
    ObjectMissing,
    QuotaExceeded,
    UploadBusy,
    UploadIncomplete,
    UploadRefused,
    UploadsFull,
    UploadSilent,
    UploadUnknown,
)
from registry.files.local import LocalObjects
from registry.files.types import UploadId, object_prefix, part_key
from registry.seals import RowAltered
from runtime.errors import InvalidArgument, NotFound
from runtime.ids import Digest, TenantId
from runtime.sealed_chunks import CHUNK_BYTES, ChunkAltered, open_chunk
from tests.registry.files.rig import (
    LIMITS,
    Rig,
    accepted,
    content_of,
    of_tenant,
    part_of,
    pieces_of,
    rig_on,
    sha256_of,
    upload_id_of,
)
from tests.registry.harness import Ground, ground_on

CONTENT = content_of()
ACME = TenantId("acme")


async def plain(rig: Rig, content: bytes) -> bytes:
    """The stored file, opened."""
    file = await rig.store.file(Digest(sha256_of(content)))
    assert file is not None
    data_key, layout, opened = rig.data_keys.open(file.object_id, file.sha256, file.key), file.layout, b""
    for number in range(layout.part_count):
        sealed = await rig.objects.get(part_key(file.object_id, number), 0, layout.sealed_part_size(number))
        for chunk in layout.chunks_of(number):
            start = layout.sealed_offset(chunk)
            box = sealed[start : start + layout.sealed_chunk_size(chunk)]
            opened += open_chunk(data_key, file.object_id, chunk, layout.size_bytes, box)
    return opened


def all_bytes(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())


async def used_bytes(rig: Rig, tenant: TenantId = ACME) -> int:
    (usage,) = await rig.store.usages(tenant)
    return usage.used_bytes


async def test_a_file_in_parts_becomes_a_file(rig: Rig) -> None:
    begun = await rig.begin(CONTENT)
    assert not begun.complete
    assert begun.received_parts == ()
    await rig.send(begun, CONTENT, 3, 0, 1, 2)
    assert (await rig.begin(CONTENT)).received_parts == (0, 1, 2, 3)
    assert await rig.store.file(Digest(sha256_of(CONTENT))) is None, "nothing is visible before it was verified"
    await rig.complete(begun)
    assert await plain(rig, CONTENT) == CONTENT
    assert (await rig.begin(CONTENT)).complete
    assert await rig.ground.count("uploads") == 0
    sha256 = sha256_of(CONTENT)
    assert await rig.ground.actions() == [("upload.begin", sha256, "done"), ("upload.complete", sha256, "done")]


@pytest.mark.parametrize("size_bytes", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES])
async def test_files_of_awkward_sizes(sqlite_rig: Rig, size_bytes: int) -> None:
    content = content_of(size_bytes)
    await sqlite_rig.upload(content)
    assert await plain(sqlite_rig, content) == content


async def test_parts_of_several_chunks(sqlite_ground: Ground, tmp_path: Path) -> None:
    rig = rig_on(sqlite_ground, tmp_path, replace(LIMITS, part_bytes=3 * CHUNK_BYTES))
    content = content_of(7 * CHUNK_BYTES + 5)
    await rig.upload(content)
    assert await plain(rig, content) == content


async def test_nothing_of_the_file_is_there_to_be_read(sqlite_rig: Rig, tmp_path: Path) -> None:
    await sqlite_rig.upload(CONTENT)
    stored = all_bytes(tmp_path)
    assert len(stored) > len(CONTENT)
    assert not any(CONTENT[at : at + 16] in stored for at in range(0, len(CONTENT), 99_991))


async def test_an_upload_begun_again_goes_on(rig: Rig) -> None:
    first = await rig.begin(CONTENT)
    await rig.send(first, CONTENT, 2)
    again = await rig.begin(CONTENT)
    assert upload_id_of(again) == upload_id_of(first)
    assert again.received_parts == (2,)
    with pytest.raises(UploadIncomplete, match="1 of 4"):
        await rig.complete(again)
    await rig.send(again, CONTENT, 0, 1, 3)
    await rig.complete(again)


async def test_fifty_begin_at_once_and_it_is_one_upload(rig: Rig) -> None:
    begun = await asyncio.gather(*(rig.begin(CONTENT) for _ in range(50)))
    assert len({upload_id_of(each) for each in begun}) == 1
    assert await rig.ground.count("uploads") == 1


async def test_all_parts_at_once_each_several_times_through_two_replicas(
    ground: Ground, database_address: str, tmp_path: Path
) -> None:
    async with ground_on(database_address) as other:
        replicas = [rig_on(ground, tmp_path), rig_on(other, tmp_path)]
        begun = await replicas[0].begin(CONTENT)
        await asyncio.gather(*(replicas[turn % 2].send(begun, CONTENT, number) for turn in range(4) for number in range(4)))
        assert (await replicas[1].begin(CONTENT)).received_parts == (0, 1, 2, 3)
        await replicas[1].complete(begun)
        assert await plain(replicas[0], CONTENT) == CONTENT


async def test_of_two_contents_for_one_part_one_is_stored_whole(sqlite_rig: Rig) -> None:
    other = bytes(CHUNK_BYTES) + CONTENT[CHUNK_BYTES:]
    begun = await sqlite_rig.begin(CONTENT)
    assert begun.upload is not None
    await asyncio.gather(*(sqlite_rig.send(begun, content, 0) for content in (CONTENT, other, CONTENT, other)))
    layout, object_id = begun.upload.layout, begun.upload.object_id
    sealed = await sqlite_rig.objects.get(part_key(object_id, 0), 0, layout.sealed_part_size(0))
    data_key = sqlite_rig.data_keys.open(object_id, begun.upload.sha256, begun.upload.key)
    stored = open_chunk(data_key, object_id, 0, layout.size_bytes, sealed)
    assert stored in (part_of(CONTENT, layout, 0), part_of(other, layout, 0))


async def test_a_part_that_comes_after_the_file_was_verified_changes_nothing(sqlite_rig: Rig) -> None:
    """Its sender began in time, and held it back: another tenant may rely on this very file by now."""
    begun = await sqlite_rig.begin(CONTENT)
    assert begun.upload is not None
    reading, may_end = asyncio.Event(), asyncio.Event()

    async def held_back() -> object:
        reading.set()
        yield b"evil" * (CHUNK_BYTES // 8)
        await may_end.wait()
        yield b"evil" * (CHUNK_BYTES // 8)

    late = asyncio.create_task(
        sqlite_rig.uploads.receive(of_tenant("acme"), begun.upload.upload_id, 0, held_back(), accepted)  # type: ignore[arg-type]
    )
    await reading.wait()
    await sqlite_rig.send(begun, CONTENT)
    await sqlite_rig.complete(begun)
    may_end.set()
    with pytest.raises(UploadUnknown):
        await late
    assert await plain(sqlite_rig, CONTENT) == CONTENT


async def test_the_wrong_content_is_refused_and_leaves_nothing(rig: Rig) -> None:
    wrong = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]
    begun = await rig.begin(CONTENT)
    await rig.send(begun, wrong)
    with pytest.raises(UploadRefused, match=hashlib.sha256(wrong).hexdigest()):
        await rig.complete(begun)
    assert await rig.keys() == set()
    assert await used_bytes(rig) == 0
    assert ("upload.refuse", sha256_of(CONTENT), "failed") in await rig.ground.actions()
    await rig.upload(CONTENT)
    assert await plain(rig, CONTENT) == CONTENT


@pytest.mark.parametrize("part", [b"", CONTENT[: CHUNK_BYTES - 1], CONTENT[: CHUNK_BYTES + 1], CONTENT])
async def test_a_part_of_another_size_is_not_taken(sqlite_rig: Rig, part: bytes) -> None:
    begun = await sqlite_rig.begin(CONTENT)
    with pytest.raises(UploadRefused, match="part 0 has 1048576 bytes"):
        await sqlite_rig.uploads.receive(of_tenant("acme"), upload_id_of(begun), 0, pieces_of(part), accepted)
    assert await sqlite_rig.keys() == set()
    assert (await sqlite_rig.begin(CONTENT)).received_parts == ()


async def test_what_cannot_be_is_refused(sqlite_rig: Rig) -> None:
    begun = await sqlite_rig.begin(CONTENT)
    with pytest.raises(InvalidArgument, match="part 4: a file of 3158073 bytes has 4"):
        await sqlite_rig.uploads.receive(of_tenant("acme"), upload_id_of(begun), 4, pieces_of(b""), accepted)
    with pytest.raises(UploadUnknown):
        await sqlite_rig.uploads.receive(of_tenant("acme"), UploadId("x"), 0, pieces_of(b""), accepted)
    with pytest.raises(InvalidArgument, match="64 lower-case"):
        await sqlite_rig.begin(CONTENT, sha256="AB" * 32)
    with pytest.raises(InvalidArgument, match="takes up to"):
        await sqlite_rig.begin(CONTENT, size_bytes=2**40)
    with pytest.raises(UploadRefused, match="is under way"):
        await sqlite_rig.begin(CONTENT, size_bytes=5)
    with pytest.raises(NotFound, match="no tenant"):
        await sqlite_rig.begin(CONTENT, tenant="nobody")
    await sqlite_rig.upload(CONTENT)
    with pytest.raises(UploadRefused, match="has 3158073 bytes, not 5"):
        await sqlite_rig.begin(CONTENT, size_bytes=5)


async def test_a_silent_sender_is_given_up(sqlite_ground: Ground, tmp_path: Path) -> None:
    rig = rig_on(sqlite_ground, tmp_path, replace(LIMITS, silence_s=0.05))
    begun = await rig.begin(CONTENT)

    async def silent() -> object:
        yield b"x"
        await asyncio.Event().wait()

    with pytest.raises(UploadSilent):
        await rig.uploads.receive(of_tenant("acme"), upload_id_of(begun), 0, silent(), accepted)  # type: ignore[arg-type]


async def test_only_so_many_parts_are_in_memory_and_only_so_many_wait(sqlite_ground: Ground, tmp_path: Path) -> None:
    """Of one tenant; another finds a place and room to wait."""
    rig = rig_on(sqlite_ground, tmp_path, replace(LIMITS, parts_at_once=3, parts_waiting=4, silence_s=30.0))
    begun = await rig.begin(CONTENT)
    taken, may_end = list[int](), asyncio.Event()

    async def held(number: int) -> object:
        await may_end.wait()
        yield part_of(CONTENT, begun.upload.layout, number)  # type: ignore[union-attr]

    def sent(number: int) -> asyncio.Task[None]:
        async def take() -> None:
            taken.append(number)

        return asyncio.create_task(
            rig.uploads.receive(of_tenant("acme"), upload_id_of(begun), number, held(number), take)  # type: ignore[arg-type]
        )

    sending = [sent(number) for number in (0, 1)]
    async with asyncio.timeout(10):
        while len(taken) < 2:
            await asyncio.sleep(0.001)
        sending += [sent(number) for number in (2, 3)]
        while rig.uploads._places._shares["acme"].inside < 4:
            await asyncio.sleep(0.001)
        with pytest.raises(UploadsFull) as full:
            await sent(1)
        assert full.value.retry_after_s
        assert taken == [0, 1], "those that wait have not been asked for a byte"
        await rig.upload(b"globex's", tenant="globex")
        may_end.set()
        await asyncio.gather(*sending)
    await rig.complete(begun)


async def test_a_sender_that_breaks_off_leaves_its_place(sqlite_ground: Ground, tmp_path: Path) -> None:
    rig = rig_on(sqlite_ground, tmp_path, replace(LIMITS, parts_at_once=1))
    begun = await rig.begin(CONTENT)
    started = asyncio.Event()

    async def endless() -> object:
        started.set()
        await asyncio.Event().wait()
        yield b""

    call = asyncio.create_task(rig.uploads.receive(of_tenant("acme"), upload_id_of(begun), 0, endless(), accepted))  # type: ignore[arg-type]
    await started.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await rig.send(begun, CONTENT)
    await rig.complete(begun)


# What tenants learn of each other.


async def test_a_file_that_another_tenant_has_is_received_whole_and_stored_once(rig: Rig) -> None:
    await rig.upload(CONTENT, "acme")
    stored = await rig.keys()
    begun = await rig.begin(CONTENT, "globex")
    assert not begun.complete
    assert begun.received_parts == ()
    await rig.send(begun, CONTENT, tenant="globex")
    await rig.complete(begun, "globex")
    assert await rig.keys() == stored
    assert (await rig.begin(CONTENT, "globex")).complete
    assert await used_bytes(rig, TenantId("globex")) == await used_bytes(rig) == len(CONTENT)
    assert await rig.ground.count("files") == 1
    assert await plain(rig, CONTENT) == CONTENT


async def test_two_tenants_that_complete_the_same_file_at_once(ground: Ground, database_address: str, tmp_path: Path) -> None:
    async with ground_on(database_address) as other:
        replicas = {"acme": rig_on(ground, tmp_path), "globex": rig_on(other, tmp_path)}
        for seed in range(5):
            content = content_of(CHUNK_BYTES + 1, seed)
            begun = {tenant: await rig.begin(content, tenant) for tenant, rig in replicas.items()}
            for tenant, rig in replicas.items():
                await rig.send(begun[tenant], content, tenant=tenant)
            await asyncio.gather(*(rig.complete(begun[tenant], tenant) for tenant, rig in replicas.items()))
            assert await plain(replicas["acme"], content) == content
        assert await ground.count("files") == 5
        assert await ground.count("file_owners") == 10
        assert len(await replicas["acme"].keys()) == 10, "two parts of each"


async def test_another_tenants_upload_does_not_exist(rig: Rig) -> None:
    begun = await rig.begin(CONTENT, "acme")
    await rig.send(begun, CONTENT)
    stranger = of_tenant("globex")
    with pytest.raises(UploadUnknown):
        await rig.uploads.receive(stranger, upload_id_of(begun), 0, pieces_of(b""), accepted)
    with pytest.raises(UploadUnknown):
        await rig.complete(begun, "globex")
    await rig.uploads.abort(stranger, upload_id_of(begun))
    await rig.complete(begun)
    with pytest.raises(OtherTenant):
        await rig.uploads.begin(stranger, "acme", sha256_of(CONTENT), len(CONTENT))


async def test_who_may_not_publish_may_not_upload(sqlite_rig: Rig) -> None:
    begun, reader = await sqlite_rig.begin(CONTENT), of_tenant("acme", Scope.MODELS_READ)
    with pytest.raises(ScopeRequired):
        await sqlite_rig.uploads.begin(reader, "acme", sha256_of(CONTENT), len(CONTENT))
    with pytest.raises(ScopeRequired):
        await sqlite_rig.uploads.receive(reader, upload_id_of(begun), 0, pieces_of(b""), accepted)
    with pytest.raises(ScopeRequired):
        await anext(sqlite_rig.completion.complete(reader, upload_id_of(begun)))
    with pytest.raises(ScopeRequired):
        await sqlite_rig.uploads.abort(reader, upload_id_of(begun))


async def test_an_aborted_upload_leaves_nothing_and_may_be_begun_anew(rig: Rig) -> None:
    begun = await rig.begin(CONTENT)
    await rig.send(begun, CONTENT, 0, 1)
    for _ in range(2):
        await rig.uploads.abort(of_tenant("acme"), upload_id_of(begun))
    assert await rig.keys() == set()
    assert await used_bytes(rig) == 0
    with pytest.raises(UploadUnknown):
        await rig.send(begun, CONTENT, 2)
    assert upload_id_of(await rig.begin(CONTENT)) != upload_id_of(begun)
    await rig.upload(CONTENT)


# Completions.


class Halting(LocalObjects):
    """A store that a test can hold up while it reads."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.reached, self.reached_again, self.may_go = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def get(self, key: str, start_byte: int, size_bytes: int) -> bytes:
        if self.reached.is_set():
            self.reached_again.set()
        self.reached.set()
        await self.may_go.wait()
        return await super().get(key, start_byte, size_bytes)


async def test_a_second_completion_is_sent_away_while_the_first_works(ground: Ground, tmp_path: Path) -> None:
    objects = Halting(tmp_path)
    rig = rig_on(ground, objects)
    begun = await rig.begin(CONTENT)
    await rig.send(begun, CONTENT)
    first = asyncio.create_task(rig.complete(begun))
    await objects.reached.wait()
    with pytest.raises(UploadBusy) as busy:
        await rig.complete(begun)
    assert busy.value.retry_after_s
    objects.may_go.set()
    await first
    assert (await rig.begin(CONTENT)).complete


async def test_a_completion_that_is_broken_off_frees_the_upload_at_once(ground: Ground, tmp_path: Path) -> None:
    objects = Halting(tmp_path)
    rig = rig_on(ground, objects)
    begun = await rig.begin(CONTENT)
    await rig.send(begun, CONTENT)
    first = asyncio.create_task(rig.complete(begun))
    await objects.reached.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    objects.may_go.set()
    await rig.complete(begun)


async def test_a_dead_completion_keeps_others_off_for_seconds_only(ground: Ground, tmp_path: Path) -> None:
    """Two that verify at once, because the first seemed dead, make one file."""
    objects = Halting(tmp_path)
    rig = rig_on(ground, objects)
    begun = await rig.begin(CONTENT)
    await rig.send(begun, CONTENT)
    first = asyncio.create_task(rig.complete(begun))
    await objects.reached.wait()
    ground.clock.now_s += LIMITS.verifying_s + 1
    second = asyncio.create_task(rig.complete(begun))
    await objects.reached_again.wait()
    objects.may_go.set()
    ended: Sequence[BaseException | None] = await asyncio.gather(first, second, return_exceptions=True)
    assert sum(error is None for error in ended) >= 1
    assert all(error is None or isinstance(error, UploadUnknown) for error in ended)
    assert await plain(rig, CONTENT) == CONTENT


async def test_a_flipped_bit_in_the_store_is_found_before_it_is_a_file(rig: Rig, tmp_path: Path) -> None:
    begun = await rig.begin(CONTENT)
    await rig.send(begun, CONTENT)
    assert begun.upload is not None
    part = tmp_path / "objects" / part_key(begun.upload.object_id, 2)
    sealed = bytearray(part.read_bytes())
    sealed[500_000] ^= 1
    part.write_bytes(sealed)
    with pytest.raises(ChunkAltered):
        await rig.complete(begun)
    assert await rig.keys() == set()
    await rig.upload(CONTENT)


async def test_a_part_that_was_lost_in_the_store_is_found(rig: Rig) -> None:
    begun = await rig.begin(CONTENT)
    await rig.send(begun, CONTENT)
    assert begun.upload is not None
    await rig.objects.delete([part_key(begun.upload.object_id, 1)])
    with pytest.raises(ObjectMissing):
        await rig.complete(begun)
    assert not [key for key in await rig.keys() if key.startswith(object_prefix(begun.upload.object_id))]
    await rig.upload(CONTENT)


async def test_an_altered_key_is_found(rig: Rig) -> None:
    begun = await rig.begin(CONTENT)
    await rig.send(begun, CONTENT)
    await rig.ground.execute("UPDATE uploads SET master_key_id = 'other'")
    with pytest.raises(DataKeyAltered):
        await rig.complete(begun)


# Quotas.


async def test_fifty_that_begin_at_once_stay_within_the_quota(ground: Ground, database_address: str, tmp_path: Path) -> None:
    async with ground_on(database_address) as other:
        replicas = [rig_on(ground, tmp_path), rig_on(other, tmp_path)]
        operator = of_tenant("acme", *Scope)
        await replicas[0].files.servicer._storage.set_quota(operator, "acme", 10 * 1000)
        begun = await asyncio.gather(
            *(replicas[number % 2].begin(content_of(1000, number)) for number in range(50)), return_exceptions=True
        )
        refused = [each for each in begun if isinstance(each, QuotaExceeded)]
        assert len(refused) == 40
        assert "tenant acme has 10000 of 10000 bytes" in refused[-1].message
        assert refused[0].retry_after_s is None
        assert await used_bytes(replicas[0]) == 10 * 1000
        assert await ground.count("uploads") == 10


async def test_a_quota_counts_files_and_uploads_and_lets_go_of_what_is_gone(rig: Rig) -> None:
    operator = of_tenant("acme", *Scope)
    await rig.files.servicer._storage.set_quota(operator, "acme", 2 * CHUNK_BYTES)
    await rig.upload(content_of(CHUNK_BYTES, 1))
    second = await rig.begin(content_of(CHUNK_BYTES, 2))
    with pytest.raises(QuotaExceeded):
        await rig.begin(content_of(1, 3))
    assert upload_id_of(await rig.begin(content_of(CHUNK_BYTES, 2))) == upload_id_of(second), "that is counted already"
    assert not (await rig.begin(content_of(1, 3), "globex")).complete, "another tenant's is its own"
    await rig.uploads.abort(of_tenant("acme"), upload_id_of(second))
    assert not (await rig.begin(content_of(1, 3))).complete
    (usage,) = await rig.store.usages(ACME)
    assert (usage.used_bytes, usage.quota_bytes, usage.files, usage.uploads) == (CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 1, 1)


async def test_only_so_many_uploads_at_once(sqlite_ground: Ground, tmp_path: Path) -> None:
    rig = rig_on(sqlite_ground, tmp_path, replace(LIMITS, uploads_per_tenant=2, uploads=3))
    for seed in range(2):
        await rig.begin(content_of(1, seed))
    with pytest.raises(UploadsFull, match="tenant acme has 2 uploads"):
        await rig.begin(content_of(1, 2))
    assert not (await rig.begin(content_of(1, 0))).complete, "one that is under way may be gone on with"
    await rig.begin(content_of(1, 2), "globex")
    with pytest.raises(UploadsFull, match="3 uploads are under way"):
        await rig.begin(content_of(1, 3), "globex")


async def test_a_quota_that_was_altered_in_the_database_is_not_believed(rig: Rig) -> None:
    await rig.ground.execute("UPDATE tenants SET quota_bytes = 99 WHERE tenant = 'acme'")
    with pytest.raises(RowAltered):
        await rig.begin(CONTENT)


async def test_a_file_that_the_store_lost_is_mended_by_sending_it_again(rig: Rig) -> None:
    await rig.upload(CONTENT)
    await rig.publish(CONTENT)
    file = await rig.store.file(Digest(sha256_of(CONTENT)))
    assert file is not None
    assert (await rig.begin(CONTENT)).complete
    await rig.objects.delete([part_key(file.object_id, 1)])
    await rig.upload(CONTENT)
    assert await plain(rig, CONTENT) == CONTENT
    assert (await rig.begin(CONTENT)).complete
    mended = await rig.store.file(Digest(sha256_of(CONTENT)))
    assert mended is not None
    assert mended.object_id != file.object_id
    assert all(key.startswith(object_prefix(mended.object_id)) for key in await rig.keys()), "nothing is left of the other"


async def test_a_file_that_the_store_lost_is_mended_by_another_tenant_too(rig: Rig) -> None:
    await rig.upload(CONTENT)
    file = await rig.store.file(Digest(sha256_of(CONTENT)))
    assert file is not None
    begun = await rig.begin(CONTENT, "globex")
    await rig.send(begun, CONTENT, tenant="globex")
    await rig.objects.delete([part_key(file.object_id, number) for number in range(file.layout.part_count)])
    await rig.complete(begun, "globex")
    assert await plain(rig, CONTENT) == CONTENT
    assert await used_bytes(rig) == await used_bytes(rig, TenantId("globex")) == len(CONTENT)
