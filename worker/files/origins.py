"""Where a model's files may come from: workers that hold it, then the registry.

Decides who is asked next and who is not asked again for a load. Never transfers.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from runtime.ids import Digest
from worker.life.lifecycle import CopyKey


class Origin(Protocol):
    """Where files may come from."""

    name: str
    """For the log."""

    def fetch(self, sha256: Digest, offset_bytes: int) -> AsyncGenerator[bytes, None]:
        """The file's bytes from there on. Raises Unavailable, NotFound and what else the other side answers."""
        ...


class Source(Protocol):
    """The registry: what everything comes from in the end."""

    name: str

    async def manifest(self, digest: Digest) -> bytes:
        """What `worker.files.manifest.vouched` makes; not to be believed before it is verified."""
        ...

    def files_of(self, digest: Digest) -> Origin:
        """For the files of this version: who may load a version may have its files."""
        ...


class Peers(Protocol):
    """Workers nearby."""

    def holding(self, key: CopyKey, digest: Digest) -> AbstractAsyncContextManager[Sequence[Origin]]:
        """Some that hold this version, in the order in which to ask them; none where nobody knows. Never raises."""
        ...


@dataclass(slots=True)
class Received:
    """How much came from where, over this process's life."""

    peer_bytes: int = 0
    registry_bytes: int = 0


class Origins:
    """Who is asked for the files of one load: the peers that have not failed it, then the registry.

    `distrusted` outlives this object: a load that is tried again does not ask a peer again that sent something else.
    """

    def __init__(self, peers: Sequence[Origin], registry: Origin, distrusted: set[str]) -> None:
        self._peers = [peer for peer in peers if peer.name not in distrusted]
        self._registry, self._distrusted = registry, distrusted
        self._came: dict[str, int] = {}
        """Bytes of the file under way, by origin."""
        self.each_alone = False
        """Nobody goes on with what another sent, so that it shows who sends something else."""

    def __iter__(self) -> Iterator[Origin]:
        return iter((*self._peers, self._registry))

    @property
    def last(self) -> Origin:
        """Who is asked when nobody else can."""
        return self._registry

    def next_file(self) -> None:
        self.each_alone = False

    def begin(self) -> None:
        """A try at a file begins. What came for it before counts as nobody's."""
        self._came = {}

    def came(self, origin: Origin, count: int) -> None:
        self._came[origin.name] = self._came.get(origin.name, 0) + count

    def drop(self, origin: Origin) -> None:
        """It failed: it is not asked again for this try at the load."""
        self._peers = [peer for peer in self._peers if peer is not origin]

    def distrust(self) -> bool:
        """What came was wrong. Whether a peer had a part in it: it is asked no more, or each is asked alone from now on."""
        guilty = self._came.keys() - {self._registry.name}
        if len(self._came) > 1:
            self.each_alone = True
        else:
            self._distrusted |= guilty
            self._peers = [peer for peer in self._peers if peer.name not in guilty]
        return bool(guilty)

    @property
    def contributors(self) -> list[str]:
        return list(self._came)

    @property
    def came_bytes(self) -> tuple[int, int]:
        """From peers, from the registry."""
        registry_bytes = self._came.get(self._registry.name, 0)
        return sum(self._came.values()) - registry_bytes, registry_bytes
