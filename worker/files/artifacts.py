"""A model's files, from other workers, the registry or a cache to a folder that an engine may open.

Decides what may be loaded: a manifest that a trusted signer signed, or one whom a trusted signer endorsed for that model, that
has the digest that was ordered and was not withdrawn since; and files that have the sha256 it names. All of it is checked at
every load, also of what comes from this machine's disk. A confidential model's files lie in memory alone, and go when it is
closed. What turns out not to be what it should be is told to the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from runtime.clock import Clock, SystemClock
from runtime.errors import Code, PenstockError
from runtime.ids import Digest
from runtime.manifests import ManifestRefused
from runtime.notices import NoticeBoard
from worker.files.cache import FileCache
from worker.files.describing import Descriptions
from worker.files.incidents import Report, unreported
from worker.files.manifest import Description
from worker.files.origins import Peers, Received, Source
from worker.files.receiving import FileDiffers, Progress, Receiver
from worker.life.lifecycle import CopyKey
from worker.life.standing import objection_to
from worker.threads import in_thread
from worker.types import ModelSpec

__all__ = ["Artifacts", "ConfidentialRefused", "FileDiffers", "Prepared", "Progress"]

_GOES_ON = (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED, Code.ABORTED)
"""After these a load is tried again, and goes on with what came."""


class ConfidentialRefused(PenstockError, code=Code.FAILED_PRECONDITION, reason="CONFIDENTIAL_REFUSED"):
    """This worker has no memory-backed folder for a confidential model's files."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A model's files on this machine, verified."""

    spec: ModelSpec
    folder: Path
    confidential: bool = False


class Artifacts:
    """Prepares models for loading. What is prepared stays until it is released."""

    def __init__(
        self,
        cache: FileCache,
        source: Source,
        trusted_signers: Callable[[], Container[bytes]],
        peers: Peers | None = None,
        clock: Clock | None = None,
        *,
        board: NoticeBoard | None = None,
        volatile: FileCache | None = None,
        report: Report = unreported,
    ) -> None:
        clock = clock or SystemClock()
        self._cache, self._volatile = cache, volatile
        self._board, self._report = board or NoticeBoard(), report
        self._descriptions = Descriptions(cache, source, trusted_signers, peers, clock)
        self._receiver = Receiver(source, peers, clock, report)

    @property
    def received(self) -> Received:
        return self._receiver.received

    async def describe(self, digest: Digest, key: CopyKey) -> Description:
        """What the version is. Raises ManifestRefused, ModelRefused, VersionWithdrawn, what the registry raises."""
        with self._incidents_told(digest):
            description = await self._descriptions.find(digest, key)
            _check_standing(description, self._board)
            return description

    async def prepare(self, description: Description, progress: Progress) -> Prepared:
        """Bring the files here, verify them, lay out the folder.

        Raises FileDiffers, CacheFull, ConfidentialRefused, VersionWithdrawn, what the registry raises.
        """
        spec, files, cache = description.spec, description.files, self._cache_for(description)
        with self._incidents_told(spec.digest):
            try:
                await in_thread(cache.pin, spec.digest, files)
                await self._receiver.bring(description, cache, progress)
                _check_standing(description, self._board)
                folder = await in_thread(cache.assemble, spec.digest, files)
            except BaseException as error:
                cache.unpin(spec.digest)
                if description.confidential and not (isinstance(error, PenstockError) and error.code in _GOES_ON):
                    await in_thread(cache.forget_unpinned)
                raise
        return Prepared(spec, folder, description.confidential)

    async def check(self, prepared: Prepared) -> None:
        """What was opened is what was verified, and still stands. Raises FileSwapped."""
        with self._incidents_told(prepared.spec.digest):
            await in_thread(self._kept_in(prepared).check, prepared.spec.digest)

    async def release(self, prepared: Prepared) -> None:
        """The model is closed: its folder goes, its files may go when room is needed; confidential ones go now."""
        cache = self._kept_in(prepared)
        await in_thread(cache.dismantle, prepared.spec.digest)
        cache.unpin(prepared.spec.digest)
        if prepared.confidential:
            await in_thread(cache.forget_unpinned)

    def _cache_for(self, description: Description) -> FileCache:
        if not description.confidential:
            return self._cache
        if self._volatile is None:
            spec = description.spec
            raise ConfidentialRefused(
                f"model {spec.model!r} version {spec.version} is confidential: its files may lie in memory only, and this"
                " worker has no memory-backed folder; pass --volatile-dir with a folder on a tmpfs"
            )
        return self._volatile

    def _kept_in(self, prepared: Prepared) -> FileCache:
        return self._volatile if prepared.confidential and self._volatile is not None else self._cache

    @contextmanager
    def _incidents_told(self, subject: str) -> Iterator[None]:
        try:
            yield
        except PenstockError as error:
            if error.code is Code.DATA_LOSS or isinstance(error, ManifestRefused):
                self._report(error, subject)
            raise


def _check_standing(description: Description, board: NoticeBoard) -> None:
    """What the registry told the mesh since the version was vouched for. Raises VersionWithdrawn, ManifestRefused."""
    spec = description.spec
    objection = objection_to(board.model(spec.model), spec.model, spec.version, spec.digest, description.signer_id)
    if objection is not None:
        raise objection
