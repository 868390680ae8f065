"""The gather rules that `execute_streams` compares; the one in use is `runtime.gathering.FlightPeak`."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from runtime.gathering import AtOnce, FlightPeak, GatherRule


class FixedDelay:
    """Gather for a fixed time from the first frame on, once so many calls are in flight."""

    def __init__(self, delay_s: float, from_in_flight: int) -> None:
        self._delay_s, self._from = delay_s, from_in_flight

    def came(self, now_s: float) -> None:
        return

    def hold_s(self, now_s: float, since_s: float, waiting: int, in_flight: int) -> float:
        return 0.0 if in_flight < self._from else max(0.0, since_s + self._delay_s - now_s)

    def wrote(self) -> None:
        return

    def answered(self) -> None:
        return


class AnyAnswer:
    """Gather until any message came back since the last one left, or a bound has passed."""

    def __init__(self, bound_s: float, free_in_flight: int) -> None:
        self._bound_s, self._free_in_flight = bound_s, free_in_flight
        self._unanswered = False

    def came(self, now_s: float) -> None:
        return

    def hold_s(self, now_s: float, since_s: float, waiting: int, in_flight: int) -> float:
        if not self._unanswered or in_flight <= self._free_in_flight:
            return 0.0
        return since_s + self._bound_s - now_s

    def wrote(self) -> None:
        self._unanswered = True

    def answered(self) -> None:
        self._unanswered = False


class WhileBusy:
    """Release when the worker has nothing of ours, unless this process is busy anyway."""

    def __init__(self, bound_s: float, threshold: float) -> None:
        self._bound_s, self._threshold = bound_s, threshold
        self._busy, self._at_s, self._cpu_s = 0.0, time.monotonic(), time.process_time()

    def came(self, now_s: float) -> None:
        if now_s - self._at_s > 0.02:
            cpu_s = time.process_time()
            self._busy += ((cpu_s - self._cpu_s) / (now_s - self._at_s) - self._busy) * 0.5
            self._at_s, self._cpu_s = now_s, cpu_s

    def hold_s(self, now_s: float, since_s: float, waiting: int, in_flight: int) -> float:
        if in_flight <= 2 or (waiting >= in_flight and self._busy < self._threshold):
            return 0.0
        return since_s + self._bound_s - now_s

    def wrote(self) -> None:
        return

    def answered(self) -> None:
        return


class WhileUnanswered:
    """Gather until everything sent before was answered, or a bound has passed: FlightPeak without its memory."""

    def __init__(self, bound_s: float, free_in_flight: int) -> None:
        self._bound_s = bound_s
        self._free_in_flight = free_in_flight
        self._last_s = 0.0
        self._gap_s = 4 * bound_s

    def came(self, now_s: float) -> None:
        gap_s = min(now_s - self._last_s, 4 * self._bound_s)
        self._last_s = now_s
        self._gap_s += (gap_s - self._gap_s) * 0.1

    def hold_s(self, now_s: float, since_s: float, waiting: int, in_flight: int) -> float:
        if in_flight <= self._free_in_flight or waiting >= in_flight or self._gap_s > self._bound_s:
            return 0.0
        return since_s + self._bound_s - now_s

    def wrote(self) -> None:
        return

    def answered(self) -> None:
        return


RULES: dict[str, Callable[[], GatherRule]] = {
    "at-once": AtOnce,
    **{f"fixed-{ms}ms": partial(FixedDelay, ms / 1000, 3) for ms in (1, 2, 4)},
    **{f"any-answer-{ms}ms": partial(AnyAnswer, ms / 1000, 2) for ms in (1, 2, 4)},
    **{f"unanswered-{ms}ms": partial(WhileUnanswered, ms / 1000, 2) for ms in (1, 2, 4)},
    **{f"busy-{ms}ms": partial(WhileBusy, ms / 1000, 0.5) for ms in (2, 4)},
    **{f"peak-{ms}ms": partial(FlightPeak, ms / 1000, 2) for ms in (1, 2, 3, 4)},
}
