"""How a model's aliases change: moved, promoted, rolled back, removed, settled, and taken off a version that is withdrawn.

Pure. Takes all of the model's aliases and a command; returns what is another afterwards and what goes into the history, or a
refusal with a reason. Never reads a clock or a table.

A move waits until its target is warm (`settle`), unless it is immediate or the alias points there already. What waits is in
`pending`; what an alias points at changes only by what the history (`history.py`) tells of. Every change of an alias, a pending
move's beginning included, gives it the next generation, and a removed alias that comes back goes on counting.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from registry.models.history import targets
from registry.models.policy import MAX_WEIGHT
from registry.models.types import STABLE, AliasMove, AliasState, MoveKind, PendingMove

MAX_ALIASES = 32


class No(enum.Enum):
    """Why a command is refused."""

    UNKNOWN = "there is no such alias"
    CHANGED = "it is not as the caller expected"
    IMPOSSIBLE = "as things are it cannot be"
    GONE = "its target is withdrawn"


@dataclass(frozen=True, slots=True)
class Refused:
    why: No
    sentence: str


@dataclass(frozen=True, slots=True)
class Change:
    """The aliases that are another now (None: gone), and the history's new lines, in order. Both empty: all was so before."""

    states: Mapping[str, AliasState | None]
    moves: tuple[AliasMove, ...]


Outcome = Change | Refused


@dataclass(frozen=True, slots=True)
class Scene:
    """What a command is decided by. `moves`: the history of each alias that it is about, oldest first, its end at least."""

    now_ms: int
    by: str
    aliases: Mapping[str, AliasState]
    moves: Mapping[str, Sequence[AliasMove]] = field(default_factory=dict)
    withdrawn: frozenset[int] = frozenset()


def move(
    scene: Scene, alias: str, number: int, weight: int, *, expected: int | None = None, immediate: bool = False
) -> Outcome:
    """Point an alias at a version. `expected`: what it points at now; 0: there is no such alias; None: whatever."""
    draft = _Draft(scene)
    state = draft.of(alias)
    if fault := _unexpected(alias, state, expected) or _too_many(scene, state, alias) or _too_heavy(scene, alias, weight):
        return fault
    pending = PendingMove(number, weight, scene.now_ms, MoveKind.MOVED, scene.by)
    return draft.go(state or draft.new(alias), pending, immediate=immediate)


def promote(scene: Scene, alias: str, to: str, *, expected: int | None = None, immediate: bool = False) -> Outcome:
    """Point `to` at what `alias` points at; `alias` goes away when that is done. `to` keeps its weight; a new one has none."""
    draft = _Draft(scene)
    source, state = draft.of(alias), draft.of(to)
    if source is None:
        return _unknown(alias)
    if alias == to:
        return Refused(No.IMPOSSIBLE, f"alias {alias} cannot be promoted to itself; name another")
    if source.pending is not None or not source.number:
        wanted = source.pending.number if source.pending else 0
        return Refused(No.IMPOSSIBLE, f"alias {alias} is being moved to version {wanted}; wait until it is, or move it at once")
    if fault := _unexpected(to, state, expected) or _too_many(scene, state, to):
        return fault
    state = state or draft.new(to)
    pending = PendingMove(source.number, state.weight, scene.now_ms, MoveKind.PROMOTED, scene.by, promotes=alias)
    return draft.go(state, pending, immediate=immediate)


def roll_back(scene: Scene, alias: str, *, expected: int | None = None, immediate: bool = False) -> Outcome:
    """Undo the last move: one that is under way is given up; else the alias goes to the target before, its weight unchanged.

    A roll-back that is under way stays, so that asking twice does not go back twice; immediate, it is done at once.
    """
    draft = _Draft(scene)
    state = draft.of(alias)
    if state is None:
        return _unknown(alias)
    if fault := _unexpected(alias, state, expected):
        return fault
    if not state.number:
        return Refused(No.IMPOSSIBLE, f"alias {alias} has not pointed at anything yet; remove it instead")
    if state.pending is not None and state.pending.kind is not MoveKind.ROLLED_BACK:
        draft.abandon(state, "it was rolled back")
        return draft.change()
    before = targets(scene.moves.get(alias, ()))[:-1]
    if not before:
        return Refused(No.IMPOSSIBLE, f"alias {alias} has no target before version {state.number}; move it to another version")
    if before[-1] in scene.withdrawn:
        return Refused(
            No.GONE, f"alias {alias} pointed at version {before[-1]} before, which is withdrawn; move it to another version"
        )
    pending = PendingMove(before[-1], state.weight, scene.now_ms, MoveKind.ROLLED_BACK, scene.by)
    return draft.go(state, pending, immediate=immediate)


def remove(scene: Scene, alias: str, *, expected: int | None = None) -> Outcome:
    draft = _Draft(scene)
    state = draft.of(alias)
    if state is None:
        return _unknown(alias)
    if fault := _unexpected(alias, state, expected):
        return fault
    if state.pending is not None:
        state = draft.abandon(state, "the alias was removed")
    if state.number:
        draft.point(state, 0, 0, MoveKind.REMOVED, scene.by)
    return draft.change()


def settle(scene: Scene, alias: str, generation: int, abandoned_because: str = "") -> Outcome:
    """Finish what is under way, or give it up. Refused where the alias is another than the one that was looked at."""
    draft = _Draft(scene)
    state = draft.of(alias)
    if state is None:
        return Refused(No.CHANGED, f"there is no alias {alias} any more; read the model again")
    if state.generation != generation or state.pending is None:
        return Refused(
            No.CHANGED, f"alias {alias} is at generation {state.generation} now, not at {generation}; read the model again"
        )
    if abandoned_because:
        draft.abandon(state, abandoned_because)
    else:
        draft.land(state, state.pending)
    return draft.change()


def withdraw(scene: Scene, number: int, because: str) -> Change:
    """Take every alias off a version, at once: to the last target before it that is not withdrawn; without one, away.

    Moves to the version are given up. A move of an alias to another version goes on; the alias waits for it without a target if
    there is none to go back to.
    """
    draft = _Draft(scene)
    gone = scene.withdrawn | {number}
    reason = f"version {number} was withdrawn" + (f": {because}" if because else "")
    for alias in sorted(scene.aliases):
        state = scene.aliases[alias]
        if state.pending is not None and state.pending.number == number:
            state = draft.abandon(state, reason)
        if state.number == number:
            before = [target for target in targets(scene.moves.get(alias, ())) if target not in gone]
            number_now, weight = (before[-1], state.weight) if before else (0, 0)
            draft.point(state, number_now, weight, MoveKind.WITHDRAWN, scene.by, reason)
    return draft.change()


class _Draft:
    """A change in the making."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._states: dict[str, AliasState | None] = {}
        self._moves: list[AliasMove] = []

    def of(self, alias: str) -> AliasState | None:
        return self._states[alias] if alias in self._states else self._scene.aliases.get(alias)

    def new(self, alias: str) -> AliasState:
        """One that points at nothing; it goes on counting where one of its name stopped."""
        past = self._scene.moves.get(alias, ())
        return AliasState(alias, 0, 0, past[-1].generation if past else 0, 0)

    def change(self) -> Change:
        return Change(self._states, tuple(self._moves))

    def go(self, state: AliasState, wanted: PendingMove, *, immediate: bool) -> Change:
        """Begin a move, or do it where nothing has to be waited for."""
        underway = state.pending
        same = underway is not None and _same(underway, wanted)
        if underway is not None and not same:
            state = self.abandon(state, f"a move to version {wanted.number} took its place")
        if immediate or wanted.number == state.number:
            self.land(state, wanted)
        elif not same:
            self._keep(replace(state, generation=state.generation + 1, pending=wanted))
        return self.change()

    def land(self, state: AliasState, done: PendingMove) -> None:
        if (state.number, state.weight) == (done.number, done.weight):
            self._keep(replace(state, pending=None, generation=state.generation + (state.pending is not None)))
        else:
            self.point(replace(state, pending=None), done.number, done.weight, done.kind, done.by)
        source = self.of(done.promotes) if done.promotes else None
        # One that was moved meanwhile is somebody's newer wish.
        if source is not None and source.number == done.number and source.pending is None:
            self.point(source, 0, 0, MoveKind.REMOVED, done.by, f"promoted to {state.alias}")

    def abandon(self, state: AliasState, reason: str) -> AliasState:
        """Give up what is under way. An alias that pointed at nothing yet is gone, unless it goes on with what is returned."""
        given_up = state.pending
        if given_up is None:
            return state
        after = replace(state, generation=state.generation + 1, pending=None)
        self._write(state, given_up.number, given_up.weight, MoveKind.ABANDONED, self._scene.by, reason)
        self._keep(after)
        return after

    def point(self, state: AliasState, number: int, weight: int, kind: MoveKind, by: str, reason: str = "") -> None:
        after = replace(state, number=number, weight=weight, generation=state.generation + 1, moved_at_ms=self._scene.now_ms)
        self._write(state, number, weight, kind, by, reason)
        self._keep(after)

    def _keep(self, state: AliasState) -> None:
        unchanged = state == self._scene.aliases.get(state.alias)
        if unchanged and state.alias not in self._states:
            return
        self._states[state.alias] = state if state.number or state.pending else None

    def _write(self, before: AliasState, to_number: int, weight: int, kind: MoveKind, by: str, reason: str) -> None:
        self._moves.append(
            AliasMove(
                alias=before.alias,
                generation=before.generation + 1,
                from_number=before.number,
                to_number=to_number,
                weight=weight,
                at_ms=self._scene.now_ms,
                by=by,
                kind=kind,
                reason=reason,
            )
        )


def _same(one: PendingMove, other: PendingMove) -> bool:
    return (one.number, one.weight, one.kind, one.promotes) == (other.number, other.weight, other.kind, other.promotes)


def _unknown(alias: str) -> Refused:
    return Refused(No.UNKNOWN, f"there is no alias {alias}; list the models to see what there is")


def _unexpected(alias: str, state: AliasState | None, expected: int | None) -> Refused | None:
    if expected is None:
        return None
    if state is None:
        return Refused(No.CHANGED, f"there is no alias {alias} now, and version {expected} was expected") if expected else None
    if state.number and state.number == expected:
        return None
    now = f"points at version {state.number} now" if state.number else "is being moved to its first version now"
    return Refused(No.CHANGED, f"alias {alias} {now}, not at {f'version {expected}' if expected else 'nothing'}; read it again")


def _too_many(scene: Scene, state: AliasState | None, alias: str) -> Refused | None:
    if state is not None or len(scene.aliases) < MAX_ALIASES:
        return None
    return Refused(No.IMPOSSIBLE, f"a model has up to {MAX_ALIASES} aliases; remove one before {alias} is added")


def _too_heavy(scene: Scene, alias: str, weight: int) -> Refused | None:
    """Moves under way count with what they will weigh, so that the scheduler's word is never refused for a weight."""
    others = sum(_heaviest(state) for name, state in scene.aliases.items() if name not in (alias, STABLE))
    if not weight or others + weight <= MAX_WEIGHT:
        return None
    return Refused(
        No.IMPOSSIBLE, f"weight {weight} for {alias}: the other aliases have {others} of {MAX_WEIGHT} percent; lower one first"
    )


def _heaviest(state: AliasState) -> int:
    return max(state.weight, state.pending.weight if state.pending else 0)
