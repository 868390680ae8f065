"""Moving in: what was found at a path is shown, then its versions are published one after the other.

Published in the order of their numbers, so that the newest is the last. What is published already is left as it is: an import
can be run again. How a version is published is `cli.publish`'s, what there is to import `cli.import_reading`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

from penstock.registry.v1 import models_pb2
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from cli.import_reading import ReadModel, Wanted, read_models
from cli.profile import Profile
from cli.publish import Published, place, publish_model
from cli.run import clear_line
from cli.tables import table
from runtime.errors import Code, PenstockError
from runtime.identity import load_identity
from runtime.model_folder import ModelFolder
from worker.threads import in_thread


class ImportIncomplete(PenstockError, code=Code.FAILED_PRECONDITION, reason="IMPORT_INCOMPLETE"):
    """Some models were not imported."""


async def show_models(path: Path, wanted: Wanted, terminal: Console) -> None:
    """Read and report. Raises ImportIncomplete where a model would be refused."""
    found = await _read_shown(path, wanted, terminal)
    _check_whole(found, [each.name for each in found if each.refused], "cannot be imported")


async def import_models(profile: Profile, path: Path, wanted: Wanted, copies: int, terminal: Console) -> None:
    """Read, report, publish, ask for copies. Raises ImportIncomplete where a model was refused or could not be published."""
    found = await _read_shown(path, wanted, terminal)
    failed = [each.name for each in found if each.refused]
    failed += await _publish_all(profile, [each for each in found if not each.refused], wanted, copies, terminal)
    _check_whole(found, failed, "were not imported, or not whole")


async def _read_shown(path: Path, wanted: Wanted, terminal: Console) -> list[ReadModel]:
    with terminal.status("reading …"):
        found = await in_thread(read_models, path, wanted)
    report(found, terminal)
    return found


def _check_whole(found: Sequence[ReadModel], failed: Sequence[str], what: str) -> None:
    if failed:
        raise ImportIncomplete(f"{len(failed)} of {len(found)} models {what}: {', '.join(failed[:8])}")


def report(found: Sequence[ReadModel], terminal: Console) -> None:
    """A row for each version, then what is left out and what is refused."""
    rows = table("model", "version", "engine", "batch", "inputs", "outputs", "files", "also")
    for model in found:
        for version in model.versions:
            rows.add_row(*(escape(cell) for cell in cells_of(version)))
    if rows.row_count:
        terminal.print(rows)
    for model in found:
        for warning in model.warnings:
            terminal.print(f"[yellow]note[/] {escape(model.name)}: {escape(warning)}")
    for model in found:
        if model.refused:
            terminal.print(f"[red]refused[/] {escape(model.name)}: {escape(model.refused)}")


def cells_of(version: ModelFolder) -> tuple[str, ...]:
    """A version as a row of the report."""
    manifest = version.manifest
    size = f"{len(version.files)}, {decimal(version.size_bytes)}"
    inputs, outputs = _tensors(manifest.inputs), _tensors(manifest.outputs)
    batch = str(manifest.max_batch_size) if manifest.max_batch_size else "none"
    return (
        manifest.model,
        manifest.version or "next",
        manifest.engine,
        batch,
        inputs,
        outputs,
        size,
        ", ".join(_extras(manifest)),
    )


async def _publish_all(
    profile: Profile, models: Sequence[ReadModel], wanted: Wanted, copies: int, terminal: Console
) -> list[str]:
    """The names of those that failed. What is published already is left as it is, so an import can be run again."""
    key = load_identity(Path(profile.operator_identity)).signing_key
    failed: list[str] = []
    async with profile.registry_channel() as registry, profile.scheduler_channel() as scheduler:
        for model in models:
            try:
                for version in model.versions:
                    with _Bars(terminal) as bars:
                        number = version.manifest.version
                        published = await publish_model(registry, key, version, number, wanted.tenant, bars.show)
                    _tell(published, terminal)
                if copies:
                    await place(scheduler, published, copies)
            except Exception as error:
                sentence = clear_line(error)
                if sentence is None:
                    raise
                terminal.print(f"[red]failed[/] {escape(model.name)}: {escape(sentence)}")
                failed.append(model.name)
    if copies and len(failed) < len(models):
        terminal.print(
            f"asked for {copies} copies of the newest version of each; `penstock models list` shows how far they are"
        )
    return failed


def _tell(published: Published, terminal: Console) -> None:
    what = "published" if published.new else "already published"
    name = f"[bold]{escape(published.model)}[/] version [bold]{published.version}[/]"
    terminal.print(f"{what} {name}  sha256 {published.digest[:16]}…")


class _Bars:
    """A bar for each file of a version, gone when it is published."""

    def __init__(self, terminal: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._progress = Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, what: str, done_bytes: int, total_bytes: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total_bytes)
        self._progress.update(self._tasks[what], completed=done_bytes)


def _tensors(tensors: Sequence[models_pb2.TensorSpec]) -> str:
    return "\n".join(
        f"{each.name} {each.datatype}{list(each.shape)}" + (" optional" if each.optional else "") for each in tensors
    )


def _extras(manifest: models_pb2.Manifest) -> Iterator[str]:
    """What of a manifest a person may want to find again."""
    if manifest.HasField("sequence_batching"):
        yield "sequences"
    if manifest.batching.ByteSize():
        yield f"queue delay {manifest.batching.max_queue_delay_us} µs"
    if manifest.batching.priority_levels:
        yield f"{manifest.batching.priority_levels} priorities"
    if manifest.instances > 1:
        yield f"{manifest.instances} instances"
    if manifest.decoupled:
        yield "decoupled"
    if manifest.warm_ups:
        yield f"{len(manifest.warm_ups)} warm-ups"
    if any(output.labels for output in manifest.outputs):
        yield "labels"
    yield from (f"{key}={value}" for key, value in sorted(manifest.parameters.items()) if len(value) <= 40)
