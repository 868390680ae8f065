"""`penstock models …`: push, list, show, load, unload, share, withdraw.

Names for versions are in `cli.alias_commands`, the way in from other servers in `cli.import_commands`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import options
from cli.alias_commands import add_alias_commands
from cli.import_commands import import_path
from cli.signatures_commands import add_bundle_commands

app = typer.Typer(no_args_is_help=True, help="Publish models, name their versions, and say where they run.")
_WAIT = "wait until the copies are ready"


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="folder with model.toml and the model's files")],
    version: Annotated[str, typer.Option(help="version number [default: the next one]")] = "",
    tenant: Annotated[str, typer.Option(help="whose model it is [default: the model's, or default]")] = "",
    shared_with: Annotated[list[str] | None, typer.Option(help="tenant that may use it too, or '*'; repeatable")] = None,
    alias: Annotated[str, typer.Option(help="what to call it afterwards: stable, or canary=10 for 10 % of the requests")] = "",
    copies: Annotated[int, typer.Option(min=0, help="workers to load it on; 0 = none yet")] = 2,
    wait: Annotated[bool, typer.Option(help=_WAIT)] = True,
    now: Annotated[bool, typer.Option("--now", help="move the alias at once, warm or not")] = False,
    bundle_key: Annotated[
        Path | None, typer.Option(help="public key in PEM: check the folder's OpenSSF bundle, model.sig, first")
    ] = None,
    data: options.Data = None,
) -> None:
    """Upload a model folder, sign it, publish it as a version, and load it."""
    from cli.aliases import MoveOptions, alias_word
    from cli.models import PushOptions, push_folder
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        chosen = PushOptions(
            version=version,
            tenant=tenant,
            shared_with=tuple(shared_with or ()),
            copies=copies,
            alias=alias_word(alias) if alias else None,
            move=MoveOptions(immediate=now, wait=wait),
            bundle_key=bundle_key,
        )
        await push_folder(read_profile(data), folder, chosen)

    run(work())


@app.command("list")
def list_models(
    tenant: Annotated[str, typer.Option(help="of this tenant only")] = "",
    data: options.Data = None,
) -> None:
    """Show the models, their versions and aliases, and where they run."""
    from cli.models import show_models
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        await show_models(read_profile(data), tenant)

    run(work())


@app.command()
def show(
    model: str,
    version: Annotated[str, typer.Argument(help="a number or an alias [default: those in use]")] = "",
    data: options.Data = None,
) -> None:
    """Show one model as a tree: aliases, versions, who signed them, tensors, files, copies."""
    from cli.profile import read_profile
    from cli.run import run
    from cli.show import show_model

    async def work() -> None:
        await show_model(read_profile(data), model, version)

    run(work())


@app.command()
def load(
    model: str,
    version: Annotated[str, typer.Option(help="number or alias [default: what unversioned requests mostly get]")] = "",
    copies: Annotated[int, typer.Option(min=1, help="workers to load it on, at least")] = 2,
    max_copies: Annotated[int, typer.Option(min=0, help="workers to load it on as it gets busy; 0 = no more")] = 0,
    on_demand: Annotated[
        bool, typer.Option("--on-demand", help="load it when somebody asks for it, and unload it when nobody does any more")
    ] = False,
    tier: Annotated[str, typer.Option(help="only on workers of this tier, such as A")] = "",
    label: Annotated[list[str] | None, typer.Option(help="only on workers with this label; repeatable")] = None,
    wait: Annotated[bool, typer.Option(help=_WAIT)] = True,
    data: options.Data = None,
) -> None:
    """Load a published version on that many workers, or on as many as are asked for."""
    from cli.models import load_model, spread_of
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        least, spread = spread_of(copies, max_copies, on_demand=on_demand, tier=tier, labels=label or ())
        await load_model(read_profile(data), model, version, least, wait=wait, spread=spread)

    run(work())


@app.command()
def unload(
    model: str,
    version: Annotated[str, typer.Option(help="number or alias [default: what unversioned requests mostly get]")] = "",
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


@app.command()
def share(
    model: str,
    shared_with: Annotated[list[str] | None, typer.Option("--with", help="tenant, or '*' for every one; repeatable")] = None,
    private: Annotated[bool, typer.Option("--private", help="nobody but its owner")] = False,
    data: options.Data = None,
) -> None:
    """Say who beside its owner may call and load a model. Replaces what was said before."""
    from cli.models import share_model
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        await share_model(read_profile(data), model, shared_with or [], private=private)

    run(work())


@app.command()
def withdraw(
    model: str,
    version: Annotated[str, typer.Argument(help="version number")],
    reason: Annotated[str, typer.Option(help="why, for those who come upon it")],
    data: options.Data = None,
) -> None:
    """Take a version out of use everywhere, at once and for good."""
    from cli.models import withdraw_version
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        await withdraw_version(read_profile(data), model, version, reason)

    run(work())


app.command("import")(import_path)
add_alias_commands(app)
add_bundle_commands(app)
