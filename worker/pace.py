"""Whether an execution is so short that sending it to another thread costs more than it does. Pure.

Measured on two cores: to the engine's thread and back takes 25 µs of CPU on an idle machine and 80 to 170 µs in a server, where
threads have to wake and the interpreter's lock changes hands; answering one request takes grpc.aio some 500 µs of the loop. So an
execution that stays well below that may as well run on the loop, and everything else never does.
"""

from __future__ import annotations

INLINE_NS = 250_000
"""The longest execution expected that runs where it stands."""

_DECAY = 0.95


class Pace:
    """What a row costs of late: quick to believe in worse, slow to believe in better."""

    def __init__(self, inline_ns: int = INLINE_NS) -> None:
        self._inline_ns = inline_ns
        self._row_ns: float | None = None

    def observe(self, rows: int, cpu_ns: int) -> None:
        """An execution took this much of its thread's CPU."""
        row_ns = cpu_ns / max(1, rows)
        if self._row_ns is None or row_ns > self._row_ns:
            self._row_ns = row_ns
        else:
            self._row_ns = self._row_ns * _DECAY + row_ns * (1 - _DECAY)

    def is_short(self, rows: int) -> bool:
        """Whether so many rows are expected to be done in no time. Never before one was seen."""
        return self._row_ns is not None and self._row_ns * rows <= self._inline_ns
