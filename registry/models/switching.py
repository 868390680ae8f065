"""Commands on aliases: each is one transaction, decided by `aliases.py`, written with its history, told to mesh and trail."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from registry.access.types import Principal, Scope
from registry.audit.types import note_of
from registry.models import aliases
from registry.models.aliases import Change, No, Outcome, Refused, Scene
from registry.models.catalogue import view_of
from registry.models.history import targets
from registry.models.policy import alias_faults, is_version, reason_faults, version_faults, weight_faults
from registry.models.rights import locked, to_change, to_read
from registry.models.sql import ModelRows, ModelTables
from registry.models.types import (
    AliasChanged,
    AliasMove,
    AliasRefused,
    AliasState,
    AliasUnknown,
    AliasView,
    VersionUnknown,
)
from runtime.clock import Clock
from runtime.errors import InvalidArgument, VersionWithdrawn
from runtime.ids import ModelName

HISTORY_LINES = 256
"""How far back an alias can be rolled."""
MAX_LISTED_MOVES, LISTED_MOVES = 1_000, 100
_REFUSALS = {
    No.UNKNOWN: AliasUnknown,
    No.CHANGED: AliasChanged,
    No.IMPOSSIBLE: AliasRefused,
    No.GONE: VersionWithdrawn,
}
_log = structlog.get_logger("penstock.registry")


@dataclass(frozen=True, slots=True)
class Command:
    """What the commands on an alias have in common."""

    model: ModelName
    alias: str
    expected_version: str | None = None
    """What it must point at now; empty: there must be none; None: whatever."""
    immediate: bool = False


class Switching:
    """Changes aliases, and tells how they were changed."""

    def __init__(self, tables: ModelTables, clock: Clock) -> None:
        self._tables, self._clock = tables, clock

    async def move(self, principal: Principal, command: Command, version: str, weight: int) -> AliasView:
        expected = _checked(command, version_faults(version) + weight_faults(command.alias, weight))
        number = int(version)

        async def decide(rows: ModelRows, scene: Scene) -> Outcome:
            await _check_target(rows, command.model, number)
            return aliases.move(scene, command.alias, number, weight, expected=expected, immediate=command.immediate)

        return _there(await self._change(principal, "alias.move", command, decide), command.alias)

    async def promote(self, principal: Principal, command: Command, to: str) -> AliasView:
        """`expected_version` is what `to` points at."""
        expected = _checked(command, alias_faults(to))

        async def decide(_: ModelRows, scene: Scene) -> Outcome:
            return aliases.promote(scene, command.alias, to, expected=expected, immediate=command.immediate)

        return _there(await self._change(principal, "alias.promote", command, decide, also=to), to)

    async def roll_back(self, principal: Principal, command: Command) -> AliasView:
        expected = _checked(command)

        async def decide(rows: ModelRows, scene: Scene) -> Outcome:
            before = targets(scene.moves[command.alias])[-2:]
            scene = replace(scene, withdrawn=await withdrawn_among(rows, command.model, before))
            return aliases.roll_back(scene, command.alias, expected=expected, immediate=command.immediate)

        return _there(await self._change(principal, "alias.roll_back", command, decide), command.alias)

    async def remove(self, principal: Principal, command: Command) -> None:
        expected = _checked(command)

        async def decide(_: ModelRows, scene: Scene) -> Outcome:
            return aliases.remove(scene, command.alias, expected=expected)

        await self._change(principal, "alias.remove", command, decide)

    async def settle(self, principal: Principal, command: Command, generation: int, abandoned_because: str) -> AliasView | None:
        """The alias as it is then; None: it pointed at nothing yet, and what was under way is given up."""
        _checked(command, reason_faults(abandoned_because))
        principal.require(Scope.ALIASES_SETTLE)

        async def decide(_: ModelRows, scene: Scene) -> Outcome:
            return aliases.settle(scene, command.alias, generation, abandoned_because)

        views = await self._change(principal, "alias.settle", command, decide, scope=Scope.ALIASES_SETTLE)
        return views.get(command.alias)

    async def moves(self, principal: Principal, model: ModelName, alias: str, limit: int) -> list[AliasMove]:
        """Newest first; of all aliases where none is named."""
        if alias and (faults := alias_faults(alias)):
            raise InvalidArgument("; ".join(faults))
        if limit > MAX_LISTED_MOVES:
            raise InvalidArgument(f"a limit of {limit} moves: up to {MAX_LISTED_MOVES} are listed, or 0 for {LISTED_MOVES}")
        async with self._tables.reading() as rows:
            await to_read(rows, principal, model)
            return await rows.moves(model, alias, limit or LISTED_MOVES)

    async def _change(
        self,
        principal: Principal,
        action: str,
        command: Command,
        decide: Callable[[ModelRows, Scene], Awaitable[Outcome]],
        also: str = "",
        scope: Scope = Scope.MODELS_PUBLISH,
    ) -> dict[str, AliasView]:
        """The aliases that the command is about, as they are afterwards."""
        about = [alias for alias in (command.alias, also) if alias]
        async with self._tables.writing() as rows:
            publishes = scope is Scope.MODELS_PUBLISH
            model = await (to_change(rows, principal, command.model) if publishes else locked(rows, command.model))
            now_ms = int(self._clock.wall_s() * 1000)
            scene = await with_history(rows, command.model, await scene_of(rows, principal, command.model, now_ms), about)
            change = _accepted(await decide(rows, scene))
            if change.states or change.moves:
                await put(rows, command.model, change)
                await rows.changed(command.model)
                told = _told(change)
                subject = f"{command.model}:{command.alias}"
                await rows.note(note_of(principal, action, subject, tenant=model.tenant, detail=told))
            views = await _views(rows, command.model, {**scene.aliases, **change.states}, about)
        for step in change.moves:
            _log.info("alias_changed", model=command.model, alias=step.alias, kind=step.kind.value, version=step.to_number)
        return views


async def scene_of(rows: ModelRows, principal: Principal, model: ModelName, now_ms: int) -> Scene:
    return Scene(now_ms, principal.actor_id[:64], (await rows.aliases([model]))[model])


async def with_history(rows: ModelRows, model: ModelName, scene: Scene, about: Sequence[str]) -> Scene:
    """The scene with the ends of these aliases' histories."""
    return replace(scene, moves={alias: (await rows.moves(model, alias, HISTORY_LINES))[::-1] for alias in about})


async def withdrawn_among(rows: ModelRows, model: ModelName, numbers: Iterable[int]) -> frozenset[int]:
    found = await rows.versions(model, numbers)
    return frozenset(number for number, version in found.items() if version.withdrawn_at_ms)


async def put(rows: ModelRows, model: ModelName, change: Change) -> None:
    await rows.put_aliases(model, change.states)
    await rows.add_moves(model, change.moves)


async def _check_target(rows: ModelRows, model: ModelName, number: int) -> None:
    found = await rows.version(model, number)
    if found is None:
        raise VersionUnknown(f"model {model} has no version {number}; list the models to see what there is")
    if found.summary.withdrawn_at_ms:
        raise VersionWithdrawn(f"model {model} version {number} was withdrawn; point the alias at another version")


async def _views(
    rows: ModelRows, model: ModelName, states: Mapping[str, AliasState | None], about: Sequence[str]
) -> dict[str, AliasView]:
    there = [state for alias in about if (state := states.get(alias)) is not None]
    numbers = {state.number for state in there} | {state.pending.number for state in there if state.pending}
    digests = {number: version.digest for number, version in (await rows.versions(model, numbers)).items()}
    return {state.alias: view_of(state, digests) for state in there}


def _checked(command: Command, faults: Sequence[str] = ()) -> int | None:
    """The expected number. Raises InvalidArgument with all that is wrong."""
    expected = command.expected_version
    wrong = [*alias_faults(command.alias), *faults]
    if expected and not is_version(expected):
        wrong.append(f"expected version {expected[:40]!r}: a number, or nothing where there must be no such alias, is expected")
    if wrong:
        raise InvalidArgument("; ".join(wrong))
    return int(expected or 0) if expected is not None else None


def _accepted(outcome: Outcome) -> Change:
    if isinstance(outcome, Refused):
        raise _REFUSALS[outcome.why](outcome.sentence)
    return outcome


def _there(views: Mapping[str, AliasView], alias: str) -> AliasView:
    """Of commands after which the alias is always there."""
    return views[alias]


def _told(change: Change) -> str:
    steps = [
        f"{step.alias} {step.kind.value}: {step.from_number or 'none'} to {step.to_number or 'none'}" for step in change.moves
    ]
    begun = [
        f"{alias} is to be moved to {state.pending.number}"
        for alias, state in change.states.items()
        if state is not None and state.pending is not None
    ]
    return "; ".join(steps + begun)
