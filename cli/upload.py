"""One file to the registry: in parts, some of them side by side, going on where a broken connection or a lost replica left it.

Owns the sender's side of FileService. Reads the file as it sends: a few pieces are in memory, whatever the file's size. What
failed is tried again in one place, by asking the registry how far it is; as long as something arrives now and then, for ever.
"""

from __future__ import annotations

import os
import random
from asyncio import InvalidStateError, TaskGroup
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
from penstock.registry.v1 import files_pb2, files_pb2_grpc

from registry.files.errors import UploadUnknown
from registry.threads import in_thread
from runtime.backoff import Backoff
from runtime.clock import Clock, SystemClock
from runtime.errors import Aborted, Code, InvalidArgument, PenstockError
from runtime.status import DETAILS_KEY, error_of

PARTS_AT_ONCE = 4
PATIENCE_S = 120.0
"""How long nothing at all may arrive before it is given up."""

_PIECE_BYTES = 512 * 1024
_PART_TIMEOUT_S = 600.0
_CALL_TIMEOUT_S = 60.0
_COMPLETE_TIMEOUT_S = 6 * 3600.0
_BACKOFF = Backoff(first_s=0.2, max_s=5.0)
_GO_ON = (Code.UNAVAILABLE, Code.ABORTED, Code.CANCELLED, Code.DEADLINE_EXCEEDED)
_ACCEPTED = "penstock-part"

OnProgress = Callable[[int, int], None]
"""Bytes done, bytes in all."""


def no_progress(_: int, __: int) -> None:
    """For those who do not watch."""


async def upload_file(
    stub: files_pb2_grpc.FileServiceStub,
    file: Path,
    sha256: str,
    tenant: str = "",
    on_progress: OnProgress = no_progress,
    *,
    on_verified: OnProgress = no_progress,
    parts_at_once: int = PARTS_AT_ONCE,
    patience_s: float = PATIENCE_S,
    clock: Clock | None = None,
    rng: random.Random | None = None,
) -> None:
    """Return once the registry has the whole file and has verified it. A file that the tenant has already takes one call.

    `on_progress` tells of bytes sent, `on_verified` of bytes that the registry has read back. Raises AioRpcError with what the
    registry refused, or failed with until patience ended; InvalidArgument where the file changes meanwhile.
    """
    clock, rng = clock or SystemClock(), rng or random.Random()  # noqa: S311 - jitter keeps no secret
    with _opened(file) as descriptor:
        size_bytes = os.fstat(descriptor).st_size
        sending = _Sending(stub, descriptor, _Progress(size_bytes, clock, on_progress, on_verified), parts_at_once)
        request = files_pb2.BeginUploadRequest(sha256=sha256, size_bytes=size_bytes, tenant=tenant)
        while True:
            try:
                return await sending.round(request)
            except grpc.aio.AioRpcError as failure:
                sending.progress.failures += 1
                if not _may_go_on(failure) or sending.progress.silent_s > patience_s:
                    raise
                wait_s = _BACKOFF.delay_s(sending.progress.failures, rng)
                await clock.sleep(max(wait_s, error_of(failure).retry_after_s or 0.0))


@dataclass(slots=True)
class _Progress:
    """How far the file is, and since when nothing arrived."""

    size_bytes: int
    clock: Clock
    on_progress: OnProgress
    on_verified: OnProgress
    failures: int = 0
    """Since something arrived."""
    _arrived_bytes: int = 0
    _sent_bytes: dict[int, int] = field(default_factory=dict)
    """By part: of those that are on their way."""
    _moved_s: float = 0.0

    def __post_init__(self) -> None:
        self._moved_s = self.clock.monotonic_s()

    @property
    def silent_s(self) -> float:
        return self.clock.monotonic_s() - self._moved_s

    def begun(self, arrived_bytes: int) -> None:
        self._sent_bytes.clear()
        if arrived_bytes > self._arrived_bytes:
            self.moved()
        self._arrived_bytes = arrived_bytes
        self._tell()

    def sent(self, number: int, size_bytes: int) -> None:
        self._sent_bytes[number] = self._sent_bytes.get(number, 0) + size_bytes
        self._tell()

    def arrived(self, number: int, size_bytes: int) -> None:
        self._sent_bytes.pop(number, None)
        self._arrived_bytes += size_bytes
        self.moved()
        self._tell()

    def verified(self, size_bytes: int) -> None:
        self.moved()
        self.on_verified(size_bytes, self.size_bytes)

    def moved(self) -> None:
        self.failures, self._moved_s = 0, self.clock.monotonic_s()

    def _tell(self) -> None:
        self.on_progress(self._arrived_bytes + sum(self._sent_bytes.values()), self.size_bytes)


class _Sending:
    """One open file on its way."""

    def __init__(self, stub: files_pb2_grpc.FileServiceStub, descriptor: int, progress: _Progress, parts_at_once: int) -> None:
        self._stub, self._descriptor, self._parts_at_once = stub, descriptor, parts_at_once
        self.progress = progress

    async def round(self, request: files_pb2.BeginUploadRequest) -> None:
        """Ask how far it is, send what is missing, have it verified. Whatever fails, the next round goes on from there."""
        begun = await self._stub.BeginUpload(request, timeout=_CALL_TIMEOUT_S)
        if begun.complete:
            return self.progress.begun(self.progress.size_bytes)
        received = set(begun.received_parts)
        self.progress.begun(sum(self._size_of(number, begun.part_bytes) for number in received))
        count = -(-self.progress.size_bytes // begun.part_bytes)
        await self._send_all(begun, iter([number for number in range(count) if number not in received]))
        return await self._complete(begun.upload_id)

    async def _send_all(self, begun: files_pb2.BeginUploadResponse, missing: Iterator[int]) -> None:
        """Some at once. After a failure those on their way go on to their ends, and no other is begun."""
        failures: list[Exception] = []

        async def send_some() -> None:
            while not failures and (number := next(missing, None)) is not None:
                try:
                    await self._send(begun, number)
                except (grpc.aio.AioRpcError, PenstockError, OSError) as failure:
                    failures.append(failure)

        async with TaskGroup() as tasks:
            for _ in range(self._parts_at_once):
                tasks.create_task(send_some())
        if failures:
            # One that forbids another try counts more than one that is merely over.
            raise next((failure for failure in failures if not _may_go_on(failure)), failures[0])

    async def _send(self, begun: files_pb2.BeginUploadResponse, number: int) -> None:
        call = self._stub.UploadPart(timeout=_PART_TIMEOUT_S)
        header = files_pb2.UploadPartHeader(upload_id=begun.upload_id, number=number)
        try:
            await call.write(files_pb2.UploadPartRequest(header=header))
            # A registry that does not take the part says so before a byte of it was sent.
            if _ACCEPTED in dict(await call.initial_metadata() or ()):
                async for piece in self._pieces(number, begun.part_bytes):
                    await call.write(files_pb2.UploadPartRequest(data=piece))
                    self.progress.sent(number, len(piece))
                await call.done_writing()
        except InvalidStateError:
            pass  # it ended while this wrote; the status says why
        except BaseException:
            call.cancel()
            raise
        await call
        self.progress.arrived(number, self._size_of(number, begun.part_bytes))

    async def _pieces(self, number: int, part_bytes: int) -> AsyncIterator[bytes]:
        start, rest = number * part_bytes, self._size_of(number, part_bytes)
        while rest:
            piece = await in_thread(os.pread, self._descriptor, min(rest, _PIECE_BYTES), start)
            if not piece:
                raise InvalidArgument(f"the file became shorter than {self.progress.size_bytes} bytes while it was sent")
            yield piece
            start, rest = start + len(piece), rest - len(piece)

    async def _complete(self, upload_id: str) -> None:
        request, complete = files_pb2.CompleteUploadRequest(upload_id=upload_id), False
        async for step in self._stub.CompleteUpload(request, timeout=_COMPLETE_TIMEOUT_S):
            self.progress.verified(step.verified_bytes)
            complete = step.complete
        if not complete:
            raise Aborted("the registry ended without a word on whether the file is complete; push again")

    def _size_of(self, number: int, part_bytes: int) -> int:
        return min(part_bytes, self.progress.size_bytes - number * part_bytes)


def _may_go_on(failure: Exception) -> bool:
    """Whether asking again may help."""
    if not isinstance(failure, grpc.aio.AioRpcError):
        return False
    error = error_of(failure)
    if error.code is Code.RESOURCE_EXHAUSTED:
        return error.retry_after_s is not None  # a quota does not grow by waiting
    return error.code in _GO_ON or isinstance(error, UploadUnknown) or _is_broken_off(failure, error)


def _is_broken_off(failure: grpc.aio.AioRpcError, error: PenstockError) -> bool:
    """A write into a call that has ended fails as INTERNAL, by the client itself; the server's INTERNAL comes with details."""
    return error.code is Code.INTERNAL and DETAILS_KEY not in dict(failure.trailing_metadata() or ())


@contextmanager
def _opened(file: Path) -> Iterator[int]:
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
