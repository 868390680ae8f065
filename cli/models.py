"""What `penstock models …` does: publishes with progress, lists what is published and where it runs, places."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from penstock.registry.v1 import models_pb2, models_pb2_grpc
from penstock.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc
from penstock.worker.v1 import presence_pb2, worker_pb2
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn
from rich.table import Table

from cli.profile import Profile
from cli.publish import Published, place, publish_folder
from runtime.identity import load_identity


async def push_folder(profile: Profile, folder: Path, version: str, copies: int) -> None:
    """Publish a folder and ask for copies of it."""
    console = Console()
    key = load_identity(Path(profile.operator_identity)).signing_key
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def on_progress(path: str, done_bytes: int, total_bytes: int) -> None:
            if path not in tasks:
                tasks[path] = progress.add_task(path, total=total_bytes)
            progress.update(tasks[path], completed=done_bytes)

        async with profile.registry_channel() as registry:
            published = await publish_folder(registry, key, folder, version, on_progress)
    what = "published" if published.new else "unchanged, already published as"
    console.print(f"{what} [bold]{published.model}[/] version [bold]{published.version}[/]  sha256 {published.digest[:16]}…")
    if copies:
        async with profile.scheduler_channel() as scheduler:
            await place(scheduler, published, copies)
        console.print(f"asked for {copies} copies; `penstock models list` shows when they are ready")


async def load_model(profile: Profile, model: str, version: str, copies: int) -> None:
    """Ask for that many copies of a published version."""
    async with profile.registry_channel() as registry, profile.scheduler_channel() as scheduler:
        request = models_pb2.GetVersionRequest(model=model, version=version)
        found = (await models_pb2_grpc.ModelServiceStub(registry).GetVersion(request)).version
        await place(scheduler, Published(model, found.version, found.digest, new=False), copies)
    Console().print(f"asked for {copies} copies of {model} version {found.version}")


async def show_models(profile: Profile) -> None:
    """A row per version, with the states of its copies."""
    async with profile.registry_channel() as registry, profile.scheduler_channel() as scheduler:
        models = (await models_pb2_grpc.ModelServiceStub(registry).ListModels(models_pb2.ListModelsRequest())).models
        fleet = scheduler_pb2_grpc.FleetServiceStub(scheduler)
        workers = (await fleet.ListWorkers(scheduler_pb2.ListWorkersRequest())).workers
    table = Table("model", "version", "engine", "task", "size", "published", "signer", "copies")
    for model in models:
        for version in reversed(model.versions):
            published = datetime.fromtimestamp(version.published_at_ms / 1000, UTC)
            table.add_row(
                model.model,
                version.version,
                version.engine,
                version.task,
                decimal(version.size_bytes),
                f"{published:%Y-%m-%d %H:%M} UTC",
                version.signer_id,
                copy_states(list(workers), version.digest),
            )
    Console().print(table if models else "nothing is published yet; `penstock models push FOLDER`")


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
