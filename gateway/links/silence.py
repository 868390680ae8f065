"""How long a worker with open calls has said nothing, counted in looks of our own.

Pure: no clock. A look that comes late counts as one look all the same: time in which this process itself stood still says
nothing of a worker, whose messages then wait to be read. And a look counts only if calls were open at the one before, so that
who was just asked is not blamed for the pause before it. Never decides what becomes of the calls.
"""

from __future__ import annotations

import enum

from gateway.links.types import LinkSettings

LOOK_S = 0.25
"""From one look to the next while calls are open."""

IDLE_LOOK_S = 0.5
"""And while none is: a gateway may have a thousand links."""


class Verdict(enum.Enum):
    """What the latest look found."""

    HEARD = "heard"
    """It said something, or owes nothing."""
    FELL_SILENT = "fell silent"
    """It has just been silent for long enough to be passed over."""
    SILENT = "silent"
    LOST = "lost"
    """It has been silent for so long that its calls should go elsewhere."""


class Silence:
    """Of one stream. Set `heard` whenever a message came."""

    __slots__ = ("_looks", "_lost_looks", "_silent_looks", "_was_open", "heard")

    def __init__(self, settings: LinkSettings) -> None:
        self._silent_looks = max(1, round(settings.silent_after_s / LOOK_S))
        self._lost_looks = max(self._silent_looks, round(settings.lost_after_s / LOOK_S))
        self._looks = 0
        self._was_open = False
        self.heard = False

    @property
    def silent_s(self) -> float:
        """As it was at the latest look."""
        return self._looks * LOOK_S

    @property
    def is_silent(self) -> bool:
        """Whether it was, at the latest look, silent for long enough to be passed over."""
        return self._looks >= self._silent_looks

    def look(self, *, is_open: bool) -> Verdict:
        """Call it every `LOOK_S`, or `IDLE_LOOK_S`. `is_open`: calls are."""
        counts, self._was_open = is_open and self._was_open and not self.heard, is_open
        self.heard = False
        if not counts:
            self._looks = 0
            return Verdict.HEARD
        self._looks += 1
        if self._looks >= self._lost_looks:
            return Verdict.LOST
        if self._looks == self._silent_looks:
            return Verdict.FELL_SILENT
        return Verdict.SILENT if self.is_silent else Verdict.HEARD
