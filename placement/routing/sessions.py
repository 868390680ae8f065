"""Where sessions with state at a worker have it.

Owns who holds which session, a bounded number of them; the longest unused is forgotten first, and is then looked for where a
new session of that name would begin. Never decides when a session is left: `placement.routing.policy` does.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from runtime.ids import ModelName, ModelVersion, WorkerId

KEPT_SESSIONS = 65_536


@dataclass(frozen=True, slots=True)
class SessionHome:
    """The state is in this version's copy, and gone with the worker's stay in the fleet."""

    worker_id: WorkerId
    tenure: int
    version: ModelVersion


class Sessions:
    """By model and the session's key."""

    def __init__(self, kept: int = KEPT_SESSIONS) -> None:
        self._kept = kept
        self._homes: OrderedDict[tuple[ModelName, str], SessionHome] = OrderedDict()

    def __len__(self) -> int:
        return len(self._homes)

    def home_of(self, model: ModelName, session_key: str) -> SessionHome | None:
        return self._homes.get((model, session_key))

    def settle(self, model: ModelName, session_key: str, home: SessionHome) -> None:
        """The session has its state there now."""
        self._homes[model, session_key] = home
        self._homes.move_to_end((model, session_key))
        if len(self._homes) > self._kept:
            self._homes.popitem(last=False)

    def forget(self, model: ModelName, session_key: str) -> None:
        """The session has ended."""
        self._homes.pop((model, session_key), None)
