"""What `penstock models …` does: publishes with progress, lists what is published and where it runs, places."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import grpc.aio
from penstock.registry.v1 import models_pb2, models_pb2_grpc
from penstock.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from penstock.worker.v1 import presence_pb2, worker_pb2
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from cli.profile import Profile
from cli.publish import Published, place, publish_folder
from cli.tables import console, table
from runtime.errors import FailedPrecondition
from runtime.identity import load_identity

_POLL_S = 0.1


async def push_folder(profile: Profile, folder: Path, version: str, copies: int, *, wait: bool) -> None:
    """Publish a folder and ask for copies of it."""
    terminal = console()
    key = load_identity(Path(profile.operator_identity)).signing_key
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=terminal, transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def on_progress(path: str, done_bytes: int, total_bytes: int) -> None:
            if path not in tasks:
                tasks[path] = progress.add_task(path, total=total_bytes)
            progress.update(tasks[path], completed=done_bytes)

        async with profile.registry_channel() as registry:
            published = await publish_folder(registry, key, folder, version, on_progress)
    what = "published" if published.new else "unchanged, already published as"
    terminal.print(f"{what} [bold]{published.model}[/] version [bold]{published.version}[/]  sha256 {published.digest[:16]}…")
    if copies:
        async with profile.scheduler_channel() as scheduler:
            await place(scheduler, published, copies)
            if wait:
                await _follow(scheduler, published, copies)


async def load_model(profile: Profile, model: str, version: str, copies: int, *, wait: bool) -> None:
    """Ask for that many copies of a published version; 0 unloads it."""
    async with profile.registry_channel() as registry, profile.scheduler_channel() as scheduler:
        request = models_pb2.GetVersionRequest(model=model, version=version)
        found = (await models_pb2_grpc.ModelServiceStub(registry).GetVersion(request)).version
        published = Published(model, found.version, found.digest, new=False)
        await place(scheduler, published, copies)
        if wait:
            await _follow(scheduler, published, copies)


async def _follow(scheduler: grpc.aio.Channel, published: Published, copies: int) -> None:
    """Show the copies as they get ready, or go. Raises FailedPrecondition where one failed and none is still under way."""
    fleet = scheduler_pb2_grpc.FleetServiceStub(scheduler)
    name = f"{published.model} version {published.version}"
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed} of {task.total}"), transient=True
    ) as bar:
        task = bar.add_task(f"{'loading' if copies else 'unloading'} {name}", total=None)
        while True:
            workers = list((await fleet.ListWorkers(scheduler_pb2.ListWorkersRequest())).workers)
            held = [copy for worker in workers for copy in worker.models if copy.digest == published.digest]
            ready = sum(copy.state == worker_pb2.MODEL_STATE_READY for copy in held)
            failed = [copy for copy in held if copy.state == worker_pb2.MODEL_STATE_FAILED]
            wanted = min(copies, len(workers))
            bar.update(task, total=wanted or None, completed=ready)
            if copies and failed and ready + len(failed) >= wanted:
                raise FailedPrecondition(f"{name} did not load on {len(failed)} of {wanted} workers: {failed[0].reason}")
            if workers and ready == wanted and len(held) == wanted:
                break
            await asyncio.sleep(_POLL_S)
    console().print(f"{name}: {ready} of {wanted} copies are ready" if copies else f"{name} is unloaded")


async def show_models(profile: Profile) -> None:
    """A row per version, with the states of its copies."""
    async with profile.registry_channel() as registry, profile.scheduler_channel() as scheduler:
        models = (await models_pb2_grpc.ModelServiceStub(registry).ListModels(models_pb2.ListModelsRequest())).models
        fleet = scheduler_pb2_grpc.FleetServiceStub(scheduler)
        workers = (await fleet.ListWorkers(scheduler_pb2.ListWorkersRequest())).workers
    rows = table("model", "version", "engine", "task", "size", "published", "signer", "copies")
    for model in models:
        for version in reversed(model.versions):
            published = datetime.fromtimestamp(version.published_at_ms / 1000, UTC)
            rows.add_row(
                model.model,
                version.version,
                version.engine,
                version.task,
                decimal(version.size_bytes),
                f"{published:%Y-%m-%d %H:%M} UTC",
                version.signer_id,
                copy_states(list(workers), version.digest),
            )
    console().print(rows if models else "nothing is published yet; `penstock models push FOLDER`")


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
