"""Text that ends at a stop string. Pure: holds back what may turn out to be the beginning of one, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """Give it the text as it comes; it gives back what is certain to stand before any stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.met = False

    def add(self, text: str) -> str:
        """What may be shown now. `met` is set when a stop string was completed; it and what follows are never shown."""
        if not self._stops:
            return text
        self._held += text
        found = [place for place in (self._held.find(stop) for stop in self._stops) if place >= 0]
        if found:
            shown, self._held, self.met = self._held[: min(found)], "", True
            return shown
        # All is held while its end could begin a stop string, so that text and token ids leave together.
        if any(self._begins(stop) for stop in self._stops):
            return ""
        shown, self._held = self._held, ""
        return shown

    def _begins(self, stop: str) -> bool:
        return any(self._held.endswith(stop[:length]) for length in range(1, min(len(stop), len(self._held) + 1)))

    def rest(self) -> str:
        """What was held back, when nothing more comes."""
        held, self._held = self._held, ""
        return held
