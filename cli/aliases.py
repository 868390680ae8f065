"""What `penstock models alias`, `promote`, `rollback` and `history` do: names for versions, moved and looked back at.

Follows a pending move until the registry has settled it. Decides nothing about when a version is warm: the scheduler does.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

import grpc.aio
from penstock.registry.v1 import models_pb2, models_pb2_grpc
from penstock.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from penstock.worker.v1 import presence_pb2, worker_pb2
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from cli.profile import Profile
from cli.publish import check_version, find_model
from cli.tables import console, table
from runtime.errors import Code, InvalidArgument, NotFound, PenstockError

_POLL_S = 0.1
_ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_MOVES_SHOWN = 100

KINDS = {
    models_pb2.ALIAS_MOVE_KIND_MOVED: "moved",
    models_pb2.ALIAS_MOVE_KIND_PROMOTED: "promoted",
    models_pb2.ALIAS_MOVE_KIND_ROLLED_BACK: "rolled back",
    models_pb2.ALIAS_MOVE_KIND_REMOVED: "removed",
    models_pb2.ALIAS_MOVE_KIND_ABANDONED: "given up",
    models_pb2.ALIAS_MOVE_KIND_WITHDRAWN: "withdrawn",
}


class AliasNotMoved(PenstockError, code=Code.FAILED_PRECONDITION, reason="ALIAS_NOT_MOVED"):
    """A pending move ended otherwise than asked for; the alias means what it meant."""


@dataclass(frozen=True, slots=True)
class AliasWord:
    """`canary=10`, or `stable`."""

    alias: str
    weight: int
    weighed: bool
    """Whether a weight was given."""


@dataclass(frozen=True, slots=True)
class MoveOptions:
    """How an alias is to be moved."""

    expected: str | None = None
    """What it has to point at now; empty: at nothing; None: whatever it is."""
    immediate: bool = False
    wait: bool = True


def alias_word(text: str) -> AliasWord:
    """`canary=10` gives that many percent of the requests that name no version; `stable` has what is left.

    Raises InvalidArgument.
    """
    alias, sign, weight = text.partition("=")
    if not _ALIAS.fullmatch(alias):
        raise InvalidArgument(f"{alias!r} is no alias; lower-case letters, digits, '-' and '_' are, beginning with a letter")
    if sign and not (weight.isascii() and weight.isdigit() and int(weight) <= 100):
        raise InvalidArgument(f"{text!r}: the weight is a percentage, 0 to 100, as in {alias}=10")
    return AliasWord(alias, int(weight or 0), bool(sign))


async def move_alias(profile: Profile, model: str, word: AliasWord, version: str, options: MoveOptions) -> None:
    """Point an alias at a version, or (without one) change its weight."""
    check_version(version)

    async def ask(stub: models_pb2_grpc.ModelServiceStub) -> models_pb2.Alias:
        target, weight = version, word.weight
        if not version or not word.weighed:
            known = await known_alias(stub, model, word.alias, needed=not version)
            target = version or (known.version if known is not None else "")
            weight = known.weight if known is not None and not word.weighed else weight
        request = models_pb2.MoveAliasRequest(
            model=model,
            alias=word.alias,
            version=target,
            weight=weight,
            expected_version=options.expected,
            immediate=options.immediate,
        )
        return (await stub.MoveAlias(request)).alias

    await _asked(profile, model, ask, options)


async def remove_alias(profile: Profile, model: str, word: AliasWord, expected: str | None) -> None:
    async with profile.registry_channel() as registry:
        request = models_pb2.RemoveAliasRequest(model=model, alias=word.alias, expected_version=expected)
        await models_pb2_grpc.ModelServiceStub(registry).RemoveAlias(request)
    console().print(Text(f"{model} has no alias {word.alias} any more"))


async def promote_alias(profile: Profile, model: str, source: str, to: str, options: MoveOptions) -> None:
    """Make the target of `source` that of `to`."""

    async def ask(stub: models_pb2_grpc.ModelServiceStub) -> models_pb2.Alias:
        request = models_pb2.PromoteAliasRequest(
            model=model, alias=source, to=to, expected_version=options.expected, immediate=options.immediate
        )
        return (await stub.PromoteAlias(request)).alias

    await _asked(profile, model, ask, options)


async def roll_back_alias(profile: Profile, model: str, alias: str, options: MoveOptions) -> None:
    """Point an alias at what it pointed at before."""

    async def ask(stub: models_pb2_grpc.ModelServiceStub) -> models_pb2.Alias:
        request = models_pb2.RollBackAliasRequest(
            model=model, alias=alias, expected_version=options.expected, immediate=options.immediate
        )
        return (await stub.RollBackAlias(request)).alias

    await _asked(profile, model, ask, options)


async def show_history(profile: Profile, model: str, alias: str, limit: int) -> None:
    """A row per move, newest first."""
    async with profile.registry_channel() as registry:
        request = models_pb2.ListAliasMovesRequest(model=model, alias=alias, limit=limit)
        moves = (await models_pb2_grpc.ModelServiceStub(registry).ListAliasMoves(request)).moves
    rows = table("when", "alias", "from", "to", "weight", "what", "by", "why")
    for move in moves:
        when = datetime.fromtimestamp(move.at_ms / 1000, UTC)
        rows.add_row(
            f"{when:%Y-%m-%d %H:%M:%S} UTC",
            move.alias,
            move.from_version or "-",
            move.to_version or "-",
            f"{move.weight} %" if move.weight else "",
            KINDS.get(move.kind, "changed"),
            move.by,
            Text(move.reason),
        )
    console().print(rows if moves else Text(f"no alias of {model} was ever moved"))


async def known_alias(
    stub: models_pb2_grpc.ModelServiceStub, model: str, alias: str, *, needed: bool = True
) -> models_pb2.Alias | None:
    """The alias as it is now. Raises NotFound for an unknown model and, where it is needed, an unknown alias."""
    known = await find_model(stub, model)
    if known is None:
        raise NotFound(f"there is no model {model!r}; `penstock models list` shows what there is")
    found = next((each for each in known.aliases if each.alias == alias), None)
    if found is None and needed:
        there = ", ".join(each.alias for each in known.aliases) or "none"
        raise NotFound(f"model {model!r} has no alias {alias!r} (it has: {there}); say with --version what it is to mean")
    return found


async def _asked(
    profile: Profile,
    model: str,
    ask: Callable[[models_pb2_grpc.ModelServiceStub], Awaitable[models_pb2.Alias]],
    options: MoveOptions,
) -> None:
    async with profile.registry_channel() as registry:
        stub = models_pb2_grpc.ModelServiceStub(registry)
        moved = await ask(stub)
        if not moved.HasField("pending"):
            console().print(Text(meaning(model, moved)))
            return
        if not options.wait:
            console().print(Text(f"{meaning(model, moved)}; version {moved.pending.version} is getting warm first"))
            return
        async with profile.scheduler_channel() as scheduler:
            settled = await follow_move(stub, scheduler, model, moved)
    console().print(Text(meaning(model, settled)))


async def follow_move(
    stub: models_pb2_grpc.ModelServiceStub, scheduler: grpc.aio.Channel, model: str, moved: models_pb2.Alias
) -> models_pb2.Alias:
    """Show the new target getting warm until the move is settled; the alias then. Raises AliasNotMoved."""
    target = moved.pending
    fleet = scheduler_pb2_grpc.FleetServiceStub(scheduler)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed} of {task.total} copies are ready"))
    with Progress(*columns, console=console(), transient=True) as progress:
        task = progress.add_task(f"warming {model} version {target.version}", total=None)
        while True:
            known = await known_alias(stub, model, moved.alias, needed=False)
            if known is None or known.generation != moved.generation:
                break
            ready, wished = await _warmth(fleet, model, target.digest)
            progress.update(task, completed=ready, total=wished or None)
            await asyncio.sleep(_POLL_S)
    if known is not None and known.version == target.version and not known.HasField("pending"):
        return known
    raise AliasNotMoved(await _why_not(stub, model, moved))


async def _warmth(fleet: scheduler_pb2_grpc.FleetServiceStub, model: str, digest: str) -> tuple[int, int]:
    """Copies that are READY, and copies wished for. What cannot be seen now counts as nothing: the move does not hang on it."""
    try:
        workers = (await fleet.ListWorkers(scheduler_pb2.ListWorkersRequest())).workers
        wishes = (await fleet.ListPlacements(scheduler_pb2.ListPlacementsRequest())).placements
    except grpc.aio.AioRpcError:
        return 0, 0
    ready = ready_copies(workers, digest)
    return ready, sum(wish.copies for wish in wishes if wish.model == model and wish.digest == digest)


def ready_copies(workers: Iterable[presence_pb2.Presence], digest: str) -> int:
    return sum(
        copy.digest == digest and copy.state == worker_pb2.MODEL_STATE_READY for worker in workers for copy in worker.models
    )


async def _why_not(stub: models_pb2_grpc.ModelServiceStub, model: str, moved: models_pb2.Alias) -> str:
    request = models_pb2.ListAliasMovesRequest(model=model, alias=moved.alias, limit=_MOVES_SHOWN)
    moves = (await stub.ListAliasMoves(request)).moves
    since = [move for move in moves if move.generation > moved.generation]
    what = f"alias {moved.alias!r} of {model!r} did not move to version {moved.pending.version}"
    if not since:
        return f"{what}; `penstock models history {model}` may say why"
    first = min(since, key=lambda move: move.generation)
    if first.kind in (models_pb2.ALIAS_MOVE_KIND_ABANDONED, models_pb2.ALIAS_MOVE_KIND_WITHDRAWN):
        return f"{what}: {first.reason or KINDS[first.kind]}"
    return f"{what}: {first.by} changed it meanwhile ({KINDS.get(first.kind, 'changed')})"


def meaning(model: str, alias: models_pb2.Alias) -> str:
    """What an alias is now, for a person."""
    share = f", {alias.weight} % of the requests that name no version" if alias.weight else ""
    return f"{model}: {alias.alias} is version {alias.version}{share}" if alias.version else f"{model}: {alias.alias} is new"
