"""`penstock storage …`: show, quota, collect, add-key, rotate-key, prune-keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import options

app = typer.Typer(no_args_is_help=True, help="Stored files of models: how much there is, how much may be, what may go.")


@app.command()
def show(
    tenant: Annotated[str, typer.Option(help="only this tenant's")] = "",
    data: options.Data = None,
) -> None:
    """Show what each tenant has stored."""
    from cli.profile import read_profile
    from cli.run import run
    from cli.storage import show_storage

    async def work() -> None:
        await show_storage(read_profile(data), tenant)

    run(work())


@app.command()
def quota(
    tenant: str,
    size: Annotated[str, typer.Argument(help="such as 500MB or 20GiB; 0 = no limit")],
    data: options.Data = None,
) -> None:
    """Bound what a tenant may store."""
    from cli.profile import read_profile
    from cli.run import run
    from cli.storage import set_quota, size_of

    async def work() -> None:
        await set_quota(read_profile(data), tenant, size_of(size))

    run(work())


@app.command()
def collect(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be deleted, and delete nothing")] = False,
    data: options.Data = None,
) -> None:
    """Delete files that no version needs and uploads that nobody goes on with."""
    from cli.profile import read_profile
    from cli.run import run
    from cli.storage import collect_garbage

    async def work() -> None:
        await collect_garbage(read_profile(data), dry_run=dry_run)

    run(work())


@app.command("rotate-key")
def rotate_key(data: options.Data = None) -> None:
    """Put everything under the newest master key; files are not written anew."""
    from cli.profile import read_profile
    from cli.run import run
    from cli.storage import rotate_master_key

    async def work() -> None:
        await rotate_master_key(read_profile(data))

    run(work())


@app.command("add-key")
def add_key(file: Annotated[Path, typer.Argument(help="file of the registry's master keys")]) -> None:
    """Add a master key to the file; what is stored from then on is under it. `rotate-key` takes the rest over."""
    from cli.run import run
    from registry.master_keys import add_master_key

    async def work() -> None:
        typer.echo(f"master key {add_master_key(file)} is the newest now; run `penstock storage rotate-key`")

    run(work())


@app.command("prune-keys")
def prune_keys(file: Annotated[Path, typer.Argument(help="file of the registry's master keys")]) -> None:
    """Remove all master keys but the newest. Only after `rotate-key` said that nothing is left under them."""
    from cli.run import run
    from registry.master_keys import remove_master_keys

    async def work() -> None:
        typer.echo(f"removed: {remove_master_keys(file)}")

    run(work())
