"""`penstock signers …`: add, list, revoke."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import options

app = typer.Typer(no_args_is_help=True, help="Keys that may sign models for a tenant, by your own key's word.")


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="whose key it is, for people")],
    key: Annotated[str, typer.Option(help="Ed25519 public key: 64 hex digits, a file with them, or an identity folder")],
    models: Annotated[list[str], typer.Option(help="models it may sign, such as 'acme-*'; repeatable")],
    tenant: Annotated[str, typer.Option(help="tenant whose models they are")] = "default",
    days: Annotated[float, typer.Option(min=0, help="how long; 0 = until it is revoked")] = 0,
    data: options.Data = None,
) -> None:
    """Let a key sign a tenant's models."""
    from cli.profile import read_profile
    from cli.run import run
    from cli.signers import NewSigner, add_signer, read_public_key

    async def work() -> None:
        await add_signer(read_profile(data), NewSigner(name, read_public_key(key), tenant, tuple(models), days))

    run(work())


@app.command("list")
def list_signers(
    tenant: Annotated[str, typer.Option(help="of this tenant only")] = "",
    data: options.Data = None,
) -> None:
    """Show who may sign what."""
    from cli.profile import read_profile
    from cli.run import run
    from cli.signers import show_signers

    async def work() -> None:
        await show_signers(read_profile(data), tenant)

    run(work())


@app.command()
def revoke(
    signer: Annotated[str, typer.Argument(help="signer id, as `penstock signers list` shows it")],
    tenant: Annotated[str, typer.Option(help="tenant it signs for")] = "default",
    data: options.Data = None,
) -> None:
    """Nothing that the key signed is loaded from now on, and nothing it signs is published."""
    from cli.profile import read_profile
    from cli.run import run
    from cli.signers import revoke_signer

    async def work() -> None:
        await revoke_signer(read_profile(data), signer, tenant)

    run(work())
