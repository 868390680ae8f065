"""The schedulers that keep jobs, files and batches: several with one database behind them, so any that answers will do.

Owns whose turn it is. One that cannot be reached, or does not answer in time, is passed over until the others fail too. Never
asks again for what must not happen twice.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio
from penstock.scheduler.v1.jobs_pb2_grpc import BatchServiceStub, FileServiceStub, JobServiceStub

from runtime.backoff import DEFAULT_BACKOFF
from runtime.channel import inner_channel
from runtime.errors import Code, PenstockError, Unimplemented
from runtime.identity import NodeIdentity, Role
from runtime.status import DETAILS_KEY, error_of

_Answer = TypeVar("_Answer")
_ROUNDS = 6
"""For a stream that broke: how often in a row each of them may fail to say anything. Some 5 s, as long as a restart takes."""

_NOTHING_DONE = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.FAILED_PRECONDITION)
"""One that keeps no jobs says so before it does anything; another may keep them."""

_NOT_HERE = (grpc.StatusCode.UNAVAILABLE, *_NOTHING_DONE)
_NO_ANSWER = (grpc.StatusCode.DEADLINE_EXCEEDED,)


class JobsAway(PenstockError, code=Code.UNAVAILABLE, reason="JOBS_AWAY"):
    """No scheduler answers, so nothing can be learned or kept of jobs, files and batches now."""


class StreamingCall(AsyncIterable[Any], Protocol):
    """A call whose answers come one by one."""

    def cancel(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Stubs:
    """One scheduler's three services."""

    channel: grpc.aio.Channel
    jobs: Any
    files: Any
    batches: Any


class Keepers:
    """Schedulers that keep jobs, or say that they do not. Belongs to one event loop; channels belong to whoever opened them."""

    def __init__(self, channels: Sequence[grpc.aio.Channel]) -> None:
        self._all = [
            Stubs(channel, JobServiceStub(channel), FileServiceStub(channel), BatchServiceStub(channel)) for channel in channels
        ]
        self._at = 0
        self._rng = random.Random()  # noqa: S311 (spreads retries)

    async def ask(self, begin: Callable[[Stubs], Awaitable[_Answer]], *, again: bool = True) -> _Answer:
        """The first answer. `again`: the same may be asked of the next one where nobody knows what became of it.

        Raises what a scheduler answered, and JobsAway.
        """
        said: PenstockError | None = None
        for stubs in self._in_turn():
            try:
                return await begin(stubs)
            except grpc.aio.AioRpcError as failure:
                said = self._said(stubs, failure) or said
                if not again and failure.code() not in _NOTHING_DONE:
                    break
        raise said or _away()

    async def stream(self, begin: Callable[[Stubs], StreamingCall]) -> AsyncGenerator[Any, None]:
        """Messages of a call that may be begun anew: after a break they start from the beginning. Close it when leaving early.

        Raises like `ask`. A None tells that the next message is the first of another beginning.
        """
        rounds, said = 0, None
        while rounds < _ROUNDS:
            if rounds:
                await asyncio.sleep(DEFAULT_BACKOFF.delay_s(rounds, self._rng))
            rounds += 1
            for stubs in self._in_turn():
                call = begin(stubs)
                try:
                    async for message in call:
                        rounds = 1
                        yield message
                    return
                except grpc.aio.AioRpcError as failure:
                    said = self._said(stubs, failure) or said
                finally:
                    call.cancel()
                yield None
        raise said or _away()

    def _said(self, stubs: Stubs, failure: grpc.aio.AioRpcError) -> PenstockError | None:
        """What this one said of why it does not answer; None: the way there failed. Raises what any of them would say."""
        spoke = any(key == DETAILS_KEY for key, _ in failure.trailing_metadata() or ())
        if failure.code() not in (*_NOT_HERE, *(() if spoke else _NO_ANSWER)):
            raise error_of(failure) from failure
        if self._all[self._at] is stubs:
            self._at = (self._at + 1) % len(self._all)
        if failure.code() is grpc.StatusCode.UNIMPLEMENTED:
            return Unimplemented("the schedulers of this mesh keep no jobs, files or batches")
        return error_of(failure) if spoke else None

    def _in_turn(self) -> Iterator[Stubs]:
        """Each once, from the one that answered last; those that are known not to be reached come at the end."""
        turn = self._all[self._at :] + self._all[: self._at]
        broken = [each for each in turn if each.channel.get_state() is grpc.ChannelConnectivity.TRANSIENT_FAILURE]
        yield from (each for each in turn if each not in broken)
        yield from broken


@asynccontextmanager
async def reached(addresses: Sequence[str], identity: NodeIdentity) -> AsyncIterator[Keepers]:
    """The schedulers at these host:port."""
    async with AsyncExitStack() as stack:
        channels = [inner_channel(address, identity, Role.SCHEDULER) for address in addresses]
        yield Keepers([await stack.enter_async_context(channel) for channel in channels])


def _away() -> JobsAway:
    return JobsAway("no scheduler answers, and they keep the jobs, files and batches; try again", retry_after_s=1.0)
