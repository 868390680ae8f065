"""An event loop whose clock jumps to the next timer instead of sleeping, and an engine's lane that runs on it."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from worker.engine import Array

T = TypeVar("T")


class _Jumping(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise AssertionError("everything waits and no timer is set: a deadlock")
        self.now_s += max(0.0, timeout)
        return super().select(0)


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s

    def clock_ns(self) -> int:
        return round(self.time() * 1e9)


def run_virtually(body: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    """Run to the end, hours in no time."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(body(loop))
    finally:
        loop.close()


class VirtualLane:
    """Work is done when it is submitted, and known after `duration_s`, or what `durations_s` gives for one after the other."""

    def __init__(self, loop: VirtualLoop, duration_s: float, durations_s: Iterator[float] | None = None) -> None:
        self._loop = loop
        self._durations_s = durations_s
        self.duration_s = duration_s
        self.busy = False
        self.closed = False
        self._wake: asyncio.TimerHandle | None = None

    def submit(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        assert not self.busy, "one execution at a time"
        self.busy = True
        if self._wake is not None:
            self._wake.cancel()
        result, error = None, None
        try:
            result = work()
        except Exception as raised:
            error = raised
        duration_s = next(self._durations_s) if self._durations_s is not None else self.duration_s
        self._loop.call_later(duration_s, self._finish, done, result, error)

    def wake_after(self, delay_s: float, wake: Callable[[], None]) -> None:
        if self._wake is not None:
            self._wake.cancel()
        self._wake = self._loop.call_later(delay_s, wake)

    def close(self) -> None:
        self.closed = True

    def _finish(self, done: Callable[[Any, BaseException | None], None], result: object, error: BaseException | None) -> None:
        self.busy = False
        done(result, error)


class DoublingEngine:
    """Gives every value twice itself, and remembers what it was given, when, and for which slot."""

    utf8_bytes = False
    slots = 1

    def __init__(self) -> None:
        self.batches: list[Array] = []
        self.begun_s: list[float] = []
        self.slots_used: list[int] = []
        self.fails_on: Callable[[Array], Exception | None] = lambda _: None

    def run(self, inputs: Mapping[str, Array], slot: int = 0) -> Sequence[Array]:
        array = inputs["x"]
        self.batches.append(array)
        self.begun_s.append(asyncio.get_running_loop().time())
        self.slots_used.append(slot)
        error = self.fails_on(array)
        if error is not None:
            raise error
        return [array * 2]

    def close(self) -> None:
        return
