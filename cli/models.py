"""What `penstock models …` does: publishes with progress, says who may have a model, lists and places.

Names for versions are `cli.aliases`'s, one model in full is `cli.show`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import grpc.aio
from penstock.registry.v1 import models_pb2, models_pb2_grpc, nodes_pb2, nodes_pb2_grpc
from penstock.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from penstock.worker.v1 import presence_pb2, worker_pb2
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn
from rich.text import Text

from cli.aliases import AliasWord, MoveOptions, move_alias
from cli.profile import Profile
from cli.publish import ANYWHERE, OnProgress, Published, Spread, find_model, place, publish_folder
from cli.signatures import check_before_push
from cli.tables import console, table
from runtime.errors import FailedPrecondition, InvalidArgument
from runtime.identity import load_identity
from runtime.ids import EVERY_TENANT
from worker.life.memory import BASE_BYTES, FACTORS
from worker.threads import in_thread

_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class PushOptions:
    """What is to become of a folder."""

    version: str = ""
    tenant: str = ""
    shared_with: tuple[str, ...] = ()
    copies: int = 0
    alias: AliasWord | None = None
    """What the version is to be called once it is there."""
    move: MoveOptions = field(default_factory=MoveOptions)
    bundle_key: Path | None = None
    """Of the OpenSSF bundle that the folder brings along."""


async def push_folder(profile: Profile, folder: Path, options: PushOptions) -> None:
    """Publish a folder, ask for copies of it, and point an alias at it."""
    terminal = console()
    await in_thread(check_before_push, folder, options.bundle_key)
    key = load_identity(Path(profile.operator_identity)).signing_key
    with progress_of_files() as on_progress:
        async with profile.registry_channel() as registry:
            published = await publish_folder(
                registry,
                key,
                folder,
                options.version,
                on_progress,
                tenant=options.tenant,
                shared_with=options.shared_with,
            )
            if options.shared_with and not published.new_model:
                await share(registry, published.model, options.shared_with)
    what = "published" if published.new else "unchanged, already published as"
    name = Text.assemble((published.model, "bold"), " version ", (published.version, "bold"))
    terminal.print(Text(f"{what} "), name, Text(f" sha256 {published.digest[:16]}…"), sep="")
    if options.copies:
        async with profile.registry_channel() as registry, profile.scheduler_channel() as scheduler:
            await _place(registry, scheduler, published, options.copies, wait=options.move.wait)
    if options.alias is not None:
        await move_alias(profile, published.model, options.alias, published.version, options.move)


@contextmanager
def progress_of_files() -> Iterator[OnProgress]:
    """A bar for each file that is hashed or sent; gone when all is done."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console(), transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def on_progress(what: str, done_bytes: int, total_bytes: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total_bytes)
            progress.update(tasks[what], completed=done_bytes)
            if done_bytes >= total_bytes:
                progress.update(tasks[what], visible=False)  # of a thousand files those under way are seen

        yield on_progress


async def share(registry: grpc.aio.Channel, model: str, shared_with: Sequence[str]) -> models_pb2.Model:
    request = models_pb2.ShareModelRequest(model=model, shared_with=shared_with)
    return (await models_pb2_grpc.ModelServiceStub(registry).ShareModel(request)).model


async def share_model(profile: Profile, model: str, shared_with: Sequence[str], *, private: bool) -> None:
    """Say who beside its owner may call a model. Raises InvalidArgument where it is not said."""
    if private is bool(shared_with):
        raise InvalidArgument("say who may use it: --with TENANT (repeatable), --with '*' for every tenant, or --private")
    async with profile.registry_channel() as registry:
        shared = await share(registry, model, shared_with)
    others = "every tenant" if EVERY_TENANT in shared.shared_with else ", ".join(shared.shared_with) or "nobody"
    console().print(Text(f"{shared.model} belongs to tenant {shared.tenant} and is shared with {others}"))


async def withdraw_version(profile: Profile, model: str, version: str, reason: str) -> None:
    """Nobody serves or loads it from now on."""
    async with profile.registry_channel() as registry:
        request = models_pb2.WithdrawVersionRequest(model=model, version=version, reason=reason)
        withdrawn = (await models_pb2_grpc.ModelServiceStub(registry).WithdrawVersion(request)).version
    console().print(Text(f"withdrew {model} version {withdrawn.version}: {withdrawn.withdrawn_because}"))


async def load_model(profile: Profile, model: str, version: str, copies: int, *, wait: bool, spread: Spread = ANYWHERE) -> None:
    """Ask for that many copies of a published version; 0 unloads it, or has it wait until somebody asks for it."""
    async with profile.registry_channel() as registry, profile.scheduler_channel() as scheduler:
        request = models_pb2.GetVersionRequest(model=model, version=version)
        answer = await models_pb2_grpc.ModelServiceStub(registry).GetVersion(request)
        published = Published(model, answer.version.version, answer.version.digest, new=False)
        spread = replace(spread, memory_bytes=thought_bytes(answer) if copies or spread.max_copies else 0)
        await _place(registry, scheduler, published, copies, spread, wait=wait)


def spread_of(copies: int, max_copies: int, *, on_demand: bool, tier: str, labels: Sequence[str]) -> tuple[int, Spread]:
    """How many copies there are to be at least, and what else was said. Raises InvalidArgument."""
    if on_demand:
        return 0, Spread(max_copies or max(copies, 1), tier, tuple(labels))
    if max_copies and max_copies < copies:
        raise InvalidArgument(f"--max-copies {max_copies} is less than --copies {copies}; give as many or more")
    return copies, Spread(max_copies, tier, tuple(labels))


def thought_bytes(answer: models_pb2.GetVersionResponse) -> int:
    """What a copy will take, as far as is known before one is loaded: as workers estimate it."""
    said = models_pb2.Manifest.FromString(answer.manifest.manifest).memory_bytes
    factor = FACTORS.get(answer.version.engine, max(FACTORS.values()))
    return said or BASE_BYTES + int(factor * answer.version.size_bytes)


async def _place(
    registry: grpc.aio.Channel,
    scheduler: grpc.aio.Channel,
    published: Published,
    copies: int,
    spread: Spread = ANYWHERE,
    *,
    wait: bool,
) -> None:
    region = await place(scheduler, published, copies, spread)
    name = f"{published.model} version {published.version}"
    if spread.max_copies and not copies:
        console().print(f"{name} will be loaded when somebody asks for it, on up to {spread.max_copies} workers")
    elif wait:
        others = await others_workers(registry, published.model) if copies else frozenset()

        def may_have(worker: presence_pb2.Presence) -> bool:
            return worker.region == region and worker.worker_id not in others and spread.admits(worker)

        await _follow(scheduler, published, copies, may_have, or_more=spread.max_copies > copies)


async def others_workers(registry: grpc.aio.Channel, model: str) -> frozenset[str]:
    """Workers that joined for tenants of whom none may call the model: they get no copy of it."""
    known = await find_model(models_pb2_grpc.ModelServiceStub(registry), model)
    callers = {known.tenant, *known.shared_with} if known is not None else set()
    if EVERY_TENANT in callers:
        return frozenset()
    nodes = (await nodes_pb2_grpc.NodeServiceStub(registry).ListNodes(nodes_pb2.ListNodesRequest())).nodes
    return frozenset(node.node_id for node in nodes if node.tenants and not callers & set(node.tenants))


async def _follow(
    scheduler: grpc.aio.Channel,
    published: Published,
    copies: int,
    may_have: Callable[[presence_pb2.Presence], bool],
    *,
    or_more: bool,
) -> None:
    """Show the copies as they get ready, or go. Raises FailedPrecondition where one failed and none is still under way.

    `or_more`: there may be more than were asked for here.
    """
    fleet = scheduler_pb2_grpc.FleetServiceStub(scheduler)
    name = f"{published.model} version {published.version}"
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed} of {task.total}"), transient=True
    ) as bar:
        task = bar.add_task(f"{'loading' if copies else 'unloading'} {name}", total=None)
        while True:
            everybody = (await fleet.ListWorkers(scheduler_pb2.ListWorkersRequest())).workers
            workers = [worker for worker in everybody if may_have(worker)]
            held = [copy for worker in workers for copy in worker.models if copy.digest == published.digest]
            ready = sum(copy.state == worker_pb2.MODEL_STATE_READY for copy in held)
            failed = [copy for copy in held if copy.state == worker_pb2.MODEL_STATE_FAILED]
            wanted = min(copies, len(workers))
            bar.update(task, total=wanted or None, completed=ready)
            if copies and everybody and not workers:
                raise FailedPrecondition(
                    f"no worker may load {name}: all {len(everybody)} are of other tenants, regions, tiers or labels"
                )
            if copies and failed and ready + len(failed) >= wanted:
                raise FailedPrecondition(f"{name} did not load on {len(failed)} of {wanted} workers: {failed[0].reason}")
            if workers and (ready >= wanted if or_more else ready == wanted == len(held)):
                break
            await asyncio.sleep(_POLL_S)
    console().print(f"{name}: {ready} of {wanted} copies are ready" if copies else f"{name} is unloaded")


async def show_models(profile: Profile, tenant: str = "") -> None:
    """A row per version, with its aliases and the states of its copies."""
    async with profile.registry_channel() as registry, profile.scheduler_channel() as scheduler:
        request = models_pb2.ListModelsRequest(tenant=tenant)
        models = (await models_pb2_grpc.ModelServiceStub(registry).ListModels(request)).models
        fleet = scheduler_pb2_grpc.FleetServiceStub(scheduler)
        workers = (await fleet.ListWorkers(scheduler_pb2.ListWorkersRequest())).workers
    rows = table("model", "tenant", "version", "aliases", "engine", "task", "size", "published", "signer", "copies")
    for model in models:
        for version in reversed(model.versions):
            published = datetime.fromtimestamp(version.published_at_ms / 1000, UTC)
            rows.add_row(
                model.model,
                model.tenant,
                version.version,
                Text("withdrawn", style="red") if version.withdrawn_at_ms else alias_words(model, version.version),
                version.engine,
                version.task,
                decimal(version.size_bytes),
                f"{published:%Y-%m-%d %H:%M} UTC",
                version.signer_id,
                Text(copy_states(list(workers), version.digest)),
            )
    console().print(rows if models else "nothing is published yet; `penstock models push FOLDER`")


def alias_words(model: models_pb2.Model, version: str) -> str:
    """The aliases that mean this version, with their weights, and those that are on their way to it."""
    words = [
        f"{alias.alias} {alias.weight} %" if alias.weight else alias.alias
        for alias in model.aliases
        if alias.version == version
    ]
    words += [f"({alias.alias}: warming)" for alias in model.aliases if alias.pending.version == version]
    return ", ".join(words)


def copy_states(workers: list[presence_pb2.Presence], digest: str) -> str:
    """How many copies are in which state, and why one failed."""
    counts: dict[str, int] = {}
    for worker in workers:
        for copy in worker.models:
            if copy.digest == digest:
                name = state_name(copy)
                counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"


def state_name(copy: worker_pb2.ModelCopy) -> str:
    """READY, LOADING …, with the reason where there is one."""
    name = worker_pb2.ModelState.Name(copy.state).removeprefix("MODEL_STATE_")
    return f"{name} ({copy.reason})" if copy.reason else name
