"""Which object store an address means."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

from registry.files.local import open_folder
from registry.files.objects import Objects


def open_objects(address: str) -> AbstractAsyncContextManager[Objects]:
    """A folder by its path, or a bucket by a URL such as s3://bucket/prefix; entered, it has proven to keep objects.

    Raises FailedPrecondition on an address that means nothing or a folder that cannot be made, StoreRefused, StoreUnavailable.
    """
    if "://" in address and not address.startswith("file://"):
        from registry.files.cloud import open_bucket  # spares those with a folder its loading

        return open_bucket(address)
    return open_folder(Path(address.removeprefix("file://")))
