"""One thread for one slot of an engine: where blocking work runs, so that the event loop never waits.

Owns the thread. Work goes in through a C queue and comes back in one loop callback: one wake-up each way per execution,
however many requests it carries. Never decides what runs next.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from worker.types import ModelSpec

T = TypeVar("T")
Done = Callable[[Any, BaseException | None], None]


@dataclass(frozen=True, slots=True)
class _Wake:
    delay_s: float
    callback: Callable[[], None]


_Item = tuple[Callable[[], Any], Done] | _Wake | None


class Lane(Protocol):
    """Where a batcher sends its executions."""

    def submit(self, work: Callable[[], T], done: Callable[[T | None, BaseException | None], None]) -> None:
        """Run `work` on the engine's thread, then `done(result, error)` on the loop. Never raises what `work` raises."""
        ...

    def wake_after(self, delay_s: float, wake: Callable[[], None]) -> None:
        """Call `wake` on the loop after the delay, unless work is submitted first."""
        ...

    def close(self) -> None:
        """End when what was submitted is done; nothing may be submitted afterwards."""
        ...


class ThreadLane:
    """A lane on a thread of its own, made on the running loop."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._inbox: queue.SimpleQueue[_Item] = queue.SimpleQueue()  # bounded by its batcher: one execution at a time
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], T], done: Callable[[T | None, BaseException | None], None]) -> None:
        self._inbox.put((work, done))

    def wake_after(self, delay_s: float, wake: Callable[[], None]) -> None:
        # On the slot's idle thread, because uvloop's timers know whole milliseconds only.
        self._inbox.put(_Wake(delay_s, wake))

    async def call(self, work: Callable[[], T]) -> T:
        """Run `work` on the thread and wait for it; cancelling the wait does not stop the work."""
        future: asyncio.Future[T] = self._loop.create_future()

        def done(result: T | None, error: BaseException | None) -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)  # type: ignore[arg-type]

        self.submit(work, done)
        return await future

    def close(self) -> None:
        self._inbox.put(None)

    def join(self) -> None:
        """Block until the thread has ended; for another lane's thread, never for the loop."""
        self._thread.join()

    def _work(self) -> None:
        wake: _Wake | None = None
        while True:
            try:
                item = self._inbox.get(True, wake.delay_s if wake else None)
            except queue.Empty:
                if wake is not None:
                    self._post(wake.callback)
                wake = None
                continue
            wake = item if isinstance(item, _Wake) else None
            if item is None:
                return
            if isinstance(item, _Wake):
                continue
            work, done = item
            result, error = None, None
            try:
                result = work()
            except BaseException as raised:
                error = raised
            self._post(done, result, error)
            # What the thread still names while it waits would keep a request's tensors alive.
            del item, work, done, result, error

    def _post(self, callback: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:  # the loop is closed: nobody is left to tell
            return


def thread_name(spec: ModelSpec) -> str:
    return f"engine-{spec.model}-{spec.version}"
