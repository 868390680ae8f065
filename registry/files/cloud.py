"""Objects in a bucket: S3 and what speaks like it, Google Cloud Storage, Azure Blob Storage. The one file that knows obstore.

Credentials come from the environment, as each cloud's own tools read them; AWS_ENDPOINT_URL names another S3. Every request has
an end, and is tried again a bounded number of times, here and nowhere above.
"""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import obstore
from obstore import exceptions
from obstore.store import from_url

from registry.files.errors import StoreRefused, StoreUnavailable
from registry.files.objects import PAGE_OBJECTS, PROBE_PREFIX, StoredObject, checked_key, cut_short, prove
from runtime.errors import FailedPrecondition, PenstockError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

_SCHEMES = ("s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss")
_RETRIES: RetryConfig = {
    "max_retries": 4,
    "retry_timeout": timedelta(seconds=60),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=5), "base": 2},
}
_TIMEOUTS: ClientConfig = {"connect_timeout": timedelta(seconds=5), "timeout": timedelta(seconds=60)}
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_QUERY = re.compile(r"\?\S*")  # an Azure URL may carry a signature there

_FAULTS: dict[type[Exception], type[PenstockError]] = {
    exceptions.PermissionDeniedError: StoreRefused,
    exceptions.UnauthenticatedError: StoreRefused,
    exceptions.InvalidPathError: StoreRefused,
    exceptions.NotSupportedError: StoreRefused,
    exceptions.UnknownConfigurationKeyError: StoreRefused,
    exceptions.PreconditionError: StoreUnavailable,
    exceptions.GenericError: StoreUnavailable,
    exceptions.JoinError: StoreUnavailable,
    FileNotFoundError: StoreRefused,  # of a write: there is no such bucket
    OSError: StoreUnavailable,
}
"""The first that fits, in this order."""


@asynccontextmanager
async def open_bucket(address: str) -> AsyncIterator[CloudObjects]:
    """Entered, it has proven that it can be written. Raises FailedPrecondition, StoreRefused, StoreUnavailable."""
    objects = CloudObjects(_opened(address))
    await prove(objects)
    yield objects


class CloudObjects:
    """Implements Objects."""

    def __init__(self, store: Any) -> None:
        self._store = store

    async def put(self, key: str, data: bytes | bytearray) -> bool:
        with _faults_named():
            try:
                await obstore.put_async(self._store, checked_key(key), data, mode="create", use_multipart=False)
            except exceptions.AlreadyExistsError:
                return False
        return True

    async def get(self, key: str, start_byte: int, size_bytes: int) -> bytes:
        with _faults_named():
            try:
                read = await obstore.get_range_async(self._store, checked_key(key), start=start_byte, length=size_bytes)
            except FileNotFoundError as error:
                await self._find_bucket()
                raise cut_short(key) from error
            except exceptions.GenericError as error:
                if "status code: 416" in str(error):  # obstore has no class for a range behind the end
                    raise cut_short(key) from error
                raise
        if len(read) != size_bytes:
            raise cut_short(key)
        return bytes(read)

    async def delete(self, keys: Sequence[str]) -> None:
        with _faults_named():
            for start in range(0, len(keys), PAGE_OBJECTS):
                await self._delete([checked_key(key) for key in keys[start : start + PAGE_OBJECTS]])

    async def pages(self, prefix: str) -> AsyncIterator[Sequence[StoredObject]]:
        with _faults_named():
            async for page in obstore.list(self._store, prefix=prefix, chunk_size=PAGE_OBJECTS):
                yield [_described(each) for each in page]

    async def drop_drafts(self, before_ms: int) -> int:
        return 0  # a part is one request: it is there or it is not

    async def _find_bucket(self) -> None:
        """Without it nothing is found, which says nothing about what was in it. Raises GenericError."""
        async for _ in obstore.list(self._store, prefix=PROBE_PREFIX, chunk_size=1):
            return

    async def _delete(self, keys: list[str]) -> None:
        try:
            await obstore.delete_async(self._store, keys)
        except FileNotFoundError:  # not S3, which does not mind; the others of the list may be there still
            for key in keys:
                with _absence_ignored():
                    await obstore.delete_async(self._store, key)


def _opened(address: str) -> Any:
    client: ClientConfig = {**_TIMEOUTS, "allow_http": _is_plain_http()}
    try:
        if address.partition("://")[0] not in _SCHEMES:
            raise ValueError(f"one of {', '.join(_SCHEMES)} is expected")
        return from_url(address, client_options=client, retry_config=_RETRIES)
    except (exceptions.BaseError, ValueError) as error:
        raise FailedPrecondition(
            f"{_QUERY.sub('', address)!r} is no bucket that the registry can use ({_sentence(error)}); give it a folder, or a"
            " URL like s3://bucket/prefix"
        ) from error


def _is_plain_http() -> bool:
    """Only where somebody wrote it so: what is stored is sealed, but names and sizes would be there to see."""
    endpoint = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), "")
    return endpoint.startswith("http://") or os.environ.get("AWS_ALLOW_HTTP", "").lower() == "true"


def _described(listed: Any) -> StoredObject:
    return StoredObject(listed["path"], listed["size"], int(listed["last_modified"].timestamp() * 1000))


def _sentence(error: Exception) -> str:
    """Of what obstore says only the first line: the rest is its own structures."""
    return _QUERY.sub("", (str(error).splitlines() or [""])[0])[:300]


@contextmanager
def _faults_named() -> Iterator[None]:
    try:
        yield
    except PenstockError:
        raise
    except (exceptions.BaseError, OSError) as error:
        fault = next((mapped for kind, mapped in _FAULTS.items() if isinstance(error, kind)), StoreUnavailable)
        if "status code: 404" in str(error):  # of a list, for which obstore has no class: there is no such bucket
            fault = StoreRefused
        if fault is StoreUnavailable:
            raise StoreUnavailable(
                f"the object store does not answer as it should: {_sentence(error)}", retry_after_s=1.0
            ) from error
        raise fault(f"the object store refuses: {_sentence(error)}; check the address and the credentials") from error


@contextmanager
def _absence_ignored() -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        return
