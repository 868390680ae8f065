"""What the history of aliases says: where each may return to, and where it points.

Pure. The history is a line: each move to another version adds a target, a roll-back takes the last ones away, a removal all. So
roll-backs are no targets to return to, and two of them go two targets back.
"""

from __future__ import annotations

from collections.abc import Iterable

from registry.models.types import AliasMove, MoveKind

_BACKWARDS = frozenset({MoveKind.ROLLED_BACK, MoveKind.WITHDRAWN})


def targets(moves: Iterable[AliasMove]) -> list[int]:
    """What one alias pointed at and may return to, oldest first; the last is what it points at. From an end of its history."""
    line: list[int] = []
    for step in moves:
        if step.kind is MoveKind.ABANDONED:
            continue
        if not line and step.from_number:
            line = [step.from_number]  # the history before was cut off
        if not step.to_number:
            line = []
        elif step.kind in _BACKWARDS:
            while line and line[-1] != step.to_number:
                line.pop()
        if step.to_number and line[-1:] != [step.to_number]:
            line.append(step.to_number)
    return line


def replay(moves: Iterable[AliasMove]) -> dict[str, tuple[int, int]]:
    """Number and weight of each alias that points at something, from the whole history of a model."""
    now: dict[str, tuple[int, int]] = {}
    for step in moves:
        if step.kind is MoveKind.ABANDONED:
            continue
        if step.to_number:
            now[step.alias] = (step.to_number, step.weight)
        else:
            now.pop(step.alias, None)
    return now
