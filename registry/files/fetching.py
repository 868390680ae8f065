"""Files going out: sealed as they are stored, to a node that may load a model they belong to, with the key that opens them.

Decides who may have a file: a node that has the right, for a version that exists, was not withdrawn, and lists the file in its
manifest, of a model that this node may load. The data key leaves sealed to the key that the node's certificate vouches for.
Never opens a chunk.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from registry.access.types import Principal, Scope
from registry.files.data_keys import DataKeys, sealed_to_node
from registry.files.errors import FileForbidden, FileUnknown
from registry.files.layout import Layout
from registry.files.objects import Objects
from registry.files.parts import read_runs, sealed_chunks
from registry.files.places import Places
from registry.files.policy import fault_of_sha256
from registry.files.sql import FileStore
from registry.files.types import FileLimits, ObjectId, VersionFiles, Wish
from runtime.errors import InvalidArgument, VersionWithdrawn
from runtime.identity import node_id_of

_CHUNKS_AT_ONCE = 2
FilesOf = Callable[[bytes], frozenset[str]]
"""The sha256 of every file that a manifest lists."""


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file that its caller may have."""

    layout: Layout
    object_id: ObjectId
    sealed_data_key: bytes
    first_chunk: int


class Fetching:
    def __init__(self, store: FileStore, objects: Objects, data_keys: DataKeys, limits: FileLimits, files_of: FilesOf) -> None:
        self._store, self._objects, self._data_keys, self._files_of = store, objects, data_keys, files_of
        self.places = Places("readers", limits.fetches_at_once, limits.waiting, each=max(1, limits.fetches_at_once // 4))

    async def open(self, principal: Principal, wish: Wish) -> OpenFile:
        """Raises FileUnknown, FileForbidden, VersionWithdrawn, InvalidArgument, RowAltered, DataKeyAltered."""
        principal.require(Scope.FILES_FETCH)
        if fault := fault_of_sha256(wish.sha256) or fault_of_sha256(wish.digest):
            raise fault
        _check_key(principal, wish.ed25519_public_key)
        version = await self._store.version_files(wish.digest)
        if version is None:
            raise FileUnknown(f"there is no version {wish.digest}; ask for a version's digest again")
        _check_version(principal, version, wish)
        if wish.sha256 not in self._files_of(version.manifest):
            raise FileUnknown(f"version {wish.digest} of {version.model} has no file {wish.sha256}")
        file = await self._store.file(wish.sha256)
        if file is None:
            raise FileUnknown(f"there is no file {wish.sha256} in the registry; upload it again")
        if wish.first_chunk > file.layout.chunk_count:
            raise InvalidArgument(f"chunk {wish.first_chunk}: file {wish.sha256} has {file.layout.chunk_count}")
        data_key = self._data_keys.open(file.object_id, file.sha256, file.key)
        return OpenFile(file.layout, file.object_id, sealed_to_node(data_key, wish.ed25519_public_key), wish.first_chunk)

    async def chunks(self, file: OpenFile) -> AsyncGenerator[bytes, None]:
        """Sealed chunks from the first that was asked for. The caller closes the generator. Raises ObjectMissing."""
        stored = read_runs(self._objects, file.object_id, file.layout, file.first_chunk, _CHUNKS_AT_ONCE)
        async with aclosing(stored):
            async for run, data in stored:
                for _, sealed in sealed_chunks(file.layout, run, data):
                    yield sealed


def _check_key(principal: Principal, ed25519_public_key: bytes) -> None:
    if len(ed25519_public_key) != 32:
        raise InvalidArgument(f"ed25519_public_key has {len(ed25519_public_key)} bytes, not 32")
    if principal.node_id is None or node_id_of(ed25519_public_key) != principal.node_id:
        raise FileForbidden(
            f"ed25519_public_key is node {node_id_of(ed25519_public_key)}'s; {principal.actor_id} may ask with its own alone"
        )


def _check_version(principal: Principal, version: VersionFiles, wish: Wish) -> None:
    if not principal.may_load(version.tenant, version.shared_with):
        raise FileForbidden(
            f"model {version.model} is tenant {version.tenant}'s; node {principal.node_id} serves others, and may not have its"
            " files"
        )
    if version.withdrawn:
        raise VersionWithdrawn(f"version {wish.digest} of {version.model} was withdrawn; nobody may load it any more")
