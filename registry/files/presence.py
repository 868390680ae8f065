"""Whether what the database calls a file is in the store still. Looks at names and sizes; reads no byte.

A store that lost objects is mended by whoever has the file: sent again, it takes the place of what is lost.
"""

from __future__ import annotations

from registry.files.objects import Objects
from registry.files.sql import FileStore
from registry.files.types import ObjectId, object_prefix, part_key
from runtime.ids import Digest


async def lost_object(store: FileStore, objects: Objects, sha256: Digest) -> ObjectId | None:
    """The object of this file, if a part of it is gone or too short. None: it is whole, or there is no such file."""
    file = await store.file(sha256)
    if file is None:
        return None
    sizes: dict[str, int] = {}
    async for page in objects.pages(object_prefix(file.object_id)):
        sizes |= {each.key: each.size_bytes for each in page}
    layout = file.layout
    is_whole = all(
        sizes.get(part_key(file.object_id, number)) == layout.sealed_part_size(number) for number in range(layout.part_count)
    )
    return None if is_whole else file.object_id
