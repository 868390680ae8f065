"""What every store of sealed bytes has to do, whatever it is made of: a folder, and a real server that speaks S3."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from registry.files.errors import ObjectMissing
from registry.files.objects import Objects
from registry.files.stores import open_objects
from tests.support.s3 import S3Server, running_s3

KEY = f"objects/{'0a' * 16}/7"
CONTENT = bytes(range(256)) * 4096


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    with running_s3() as server:
        yield server


@pytest.fixture(params=["local", "s3"])
async def objects(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Objects]:
    address = str(tmp_path / "objects")
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3")
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        address = f"{server.new_bucket(f'bucket-{secrets.token_hex(4)}')}/some/prefix"
    async with open_objects(address) as opened:
        yield opened


async def keys(objects: Objects, prefix: str = "objects/") -> set[str]:
    return {each.key async for page in objects.pages(prefix) for each in page}


async def test_what_was_put_is_read_whole_and_in_pieces(objects: Objects) -> None:
    assert await objects.put(KEY, bytearray(CONTENT))
    assert await objects.get(KEY, 0, len(CONTENT)) == CONTENT
    assert await objects.get(KEY, 1000, 24) == CONTENT[1000:1024]
    assert await objects.get(KEY, len(CONTENT) - 1, 1) == CONTENT[-1:]


async def test_what_was_put_first_stays(objects: Objects) -> None:
    assert await objects.put(KEY, b"first")
    assert not await objects.put(KEY, b"second")
    assert await objects.get(KEY, 0, 5) == b"first"


async def test_of_many_that_put_at_once_one_wins_whole(objects: Objects) -> None:
    contents = [bytes([number]) * 100_000 for number in range(8)]
    won = await asyncio.gather(*(objects.put(KEY, content) for content in contents))
    assert won.count(True) == 1
    assert await objects.get(KEY, 0, 100_000) == contents[won.index(True)]


@pytest.mark.parametrize(("start_byte", "size_bytes"), [(0, 6), (5, 1), (6, 1), (4, 2)])
async def test_bytes_that_are_not_there_are_missed(objects: Objects, start_byte: int, size_bytes: int) -> None:
    await objects.put(KEY, b"12345")
    with pytest.raises(ObjectMissing):
        await objects.get(KEY, start_byte, size_bytes)


async def test_an_object_that_is_not_there_is_missed_and_its_deletion_is_no_fault(objects: Objects) -> None:
    with pytest.raises(ObjectMissing):
        await objects.get(KEY, 0, 1)
    await objects.delete([KEY, "objects/other/0"])
    await objects.delete([])
    assert await keys(objects) == set()


async def test_all_under_a_prefix_is_listed_with_size_and_age(objects: Objects) -> None:
    before_ms = int(time.time() * 1000)
    wanted = {f"objects/{letter * 32}/{number}": number + 1 for letter in "ab" for number in range(3)}
    for key, size_bytes in wanted.items():
        await objects.put(key, b"x" * size_bytes)
    await objects.put("elsewhere/1", b"x")
    listed = [each async for page in objects.pages("objects/") for each in page]
    assert {each.key: each.size_bytes for each in listed} == wanted
    assert all(abs(each.modified_at_ms - before_ms) < 60_000 for each in listed)
    assert await keys(objects, f"objects/{'a' * 32}/") == {key for key in wanted if "aaa" in key}
    assert await keys(objects, "nothing/") == set()


async def test_what_was_deleted_may_be_put_anew(objects: Objects) -> None:
    await objects.put(KEY, b"first")
    await objects.delete([KEY])
    assert await keys(objects) == set()
    assert await objects.put(KEY, b"second")
    assert await objects.get(KEY, 0, 6) == b"second"


async def test_what_proves_the_store_leaves_nothing(objects: Objects) -> None:
    assert await keys(objects, "probe/") == set()


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../up", "a/../b", "a//b", "A", "a/", "a b"])
async def test_a_key_that_leads_elsewhere_is_a_bug(objects: Objects, key: str) -> None:
    with pytest.raises(ValueError, match="no key"):
        await objects.put(key, b"")
