"""`penstock models …`: push, list, load, unload."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import options

app = typer.Typer(no_args_is_help=True, help="Publish models and say where they run.")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="folder with model.toml and the model's files")],
    version: Annotated[str, typer.Option(help="version number [default: the next one]")] = "",
    copies: Annotated[int, typer.Option(min=0, help="workers to load it on; 0 = none yet")] = 2,
    wait: Annotated[bool, typer.Option(help="wait until the copies are ready")] = True,
    data: options.Data = None,
) -> None:
    """Upload a model folder, sign it, publish it as a version, and load it."""
    from cli.models import push_folder
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        await push_folder(read_profile(data), folder, version, copies, wait=wait)

    run(work())


@app.command("list")
def list_models(data: options.Data = None) -> None:
    """Show the models, their versions and where they run."""
    from cli.models import show_models
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        await show_models(read_profile(data))

    run(work())


@app.command()
def load(
    model: str,
    version: Annotated[str, typer.Option(help="model version [default: newest]")] = "",
    copies: Annotated[int, typer.Option(min=1, help="workers to load it on")] = 2,
    wait: Annotated[bool, typer.Option(help="wait until the copies are ready")] = True,
    data: options.Data = None,
) -> None:
    """Load a published version on that many workers."""
    from cli.models import load_model
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        await load_model(read_profile(data), model, version, copies, wait=wait)

    run(work())


@app.command()
def unload(
    model: str,
    version: Annotated[str, typer.Option(help="model version [default: newest]")] = "",
    wait: Annotated[bool, typer.Option(help="wait until it is gone")] = True,
    data: options.Data = None,
) -> None:
    """Take a version off every worker; it stays in the registry."""
    from cli.models import load_model
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        await load_model(read_profile(data), model, version, 0, wait=wait)

    run(work())
