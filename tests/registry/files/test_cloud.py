"""Buckets: what the environment says, and what obstore's failures become."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable

import pytest

from registry.files import cloud
from registry.files.cloud import CloudObjects
from registry.files.collection import Collected
from registry.files.errors import StoreRefused, StoreUnavailable
from registry.files.objects import prove
from registry.files.stores import open_objects
from runtime.errors import FailedPrecondition
from tests.registry.files.rig import content_of, rig_on
from tests.registry.harness import Ground
from tests.support.s3 import S3Server


@pytest.fixture
def environment(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def set_to(**changed: str) -> None:
        for name, value in {**s3.environment(), **changed}.items():
            monkeypatch.setenv(name, value)

    return set_to


@pytest.mark.parametrize("address", ["s3://", "ftp://host/x", "memory:///", "http://host/x", "gopher://x"])
async def test_an_address_that_means_no_bucket_is_refused(address: str) -> None:
    with pytest.raises(FailedPrecondition, match="s3://bucket/prefix"):
        await open_objects(address).__aenter__()


async def test_a_bucket_that_is_not_there_is_told_at_the_start(environment: Callable[..., None]) -> None:
    environment()
    with pytest.raises(StoreRefused, match="bucket"):
        await open_objects("s3://no-such-bucket/x").__aenter__()


async def test_an_endpoint_where_nobody_answers_is_unavailable(
    environment: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment(AWS_ENDPOINT_URL="http://127.0.0.1:9")
    monkeypatch.setitem(cloud._RETRIES, "max_retries", 1)
    with pytest.raises(StoreUnavailable) as refused:
        await open_objects("s3://bucket/x").__aenter__()
    assert refused.value.retry_after_s == 1.0


async def test_plain_http_is_used_only_where_somebody_wrote_it(
    environment: Callable[..., None], s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment(AWS_ALLOW_HTTP="false", AWS_ENDPOINT_URL=s3.endpoint.replace("http://", "https://"))
    monkeypatch.setitem(cloud._RETRIES, "max_retries", 0)
    with pytest.raises(StoreUnavailable):
        await open_objects("s3://bucket/x").__aenter__()


async def test_a_store_that_overwrites_is_found_out(environment: Callable[..., None], s3: S3Server) -> None:
    """As one does that ignores If-None-Match."""
    environment()

    class Overwriting(CloudObjects):
        async def put(self, key: str, data: bytes | bytearray) -> bool:
            await self.delete([key])
            return await super().put(key, data)

    store = cloud._opened(s3.new_bucket(f"bucket-{secrets.token_hex(4)}"))
    with pytest.raises(StoreRefused, match="If-None-Match"):
        await prove(Overwriting(store))
    await prove(CloudObjects(store))


async def test_a_file_lives_in_a_bucket_from_its_first_part_to_its_collection(
    environment: Callable[..., None], s3: S3Server, sqlite_ground: Ground
) -> None:
    environment()
    content = content_of()
    async with open_objects(f"{s3.new_bucket(f'bucket-{secrets.token_hex(4)}')}/models") as objects:
        rig = rig_on(sqlite_ground, objects)
        begun = await rig.begin(content)
        await asyncio.gather(*(rig.send(begun, content, number) for number in (0, 1, 2, 3, 0, 2)))
        await rig.complete(begun)
        assert len(await rig.keys()) == 4
        await rig.publish(content)
        rig.later(days=2)
        assert await rig.files.garbage.collect() == Collected()
        await rig.upload(content_of(10, 1))
        rig.later(days=2)
        assert (await rig.files.garbage.collect()).files == 1
        assert len(await rig.keys()) == 4


def test_no_signature_of_a_url_is_shown() -> None:
    error = ValueError("cannot reach https://x.blob.core.windows.net/c?sig=SECRET&x=1 today\nDebug source: SECRET")
    assert cloud._sentence(error) == "cannot reach https://x.blob.core.windows.net/c today"
