"""`penstock nodes …` and `penstock join`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import options

app = typer.Typer(no_args_is_help=True, help="Machines of the mesh: invite, list, revoke.")
_ROLE_HELP = "worker, gateway, scheduler, registry, envoy or operator"
IdentityDir = Annotated[Path, typer.Option("--identity-dir", help="folder with the node's keys and certificate")]


@app.command("list")
def list_nodes(
    tokens: Annotated[bool, typer.Option("--tokens", help="the join tokens instead")] = False, data: options.Data = None
) -> None:
    """Show the nodes that were enrolled, renewed or revoked."""
    from cli.nodes import show_nodes
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        await show_nodes(read_profile(data), tokens=tokens)

    run(work())


@app.command()
def invite(
    role: Annotated[str, typer.Argument(help=_ROLE_HELP)] = "worker",
    tenant: Annotated[
        list[str] | None, typer.Option(help="a worker's: whose models it may load; repeatable [default: all]")
    ] = None,
    hours: Annotated[float, typer.Option(min=0.01, max=720, help="how long the token can be used")] = 1.0,
    data: options.Data = None,
) -> None:
    """Make a join token for one machine. Its line is printed this once."""
    from cli.nodes import Invited
    from cli.nodes import invite as make
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        await make(read_profile(data), Invited(role, tuple(tenant or ()), int(hours * 3600)))

    run(work())


@app.command()
def uninvite(token_id: str, data: options.Data = None) -> None:
    """End a join token."""
    from cli.nodes import uninvite as end
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        await end(read_profile(data), token_id)

    run(work())


@app.command()
def revoke(
    node_id: Annotated[str, typer.Argument(help="as `penstock nodes list` or `penstock fleet` shows it")],
    reason: Annotated[str, typer.Option(help="for the audit trail")] = "",
    data: options.Data = None,
) -> None:
    """Put a node out of the mesh, at once and for good."""
    from cli.nodes import revoke as put_out
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        await put_out(read_profile(data), node_id, reason)

    run(work())


@app.command()
def renew(
    identity_dir: IdentityDir,
    registry: Annotated[str, typer.Option(help="host:port of its inner port [default: the data folder's]")] = "",
    data: options.Data = None,
) -> None:
    """Renew a certificate now: an operator's or Envoy's, which no running process keeps. Services renew their own."""
    from datetime import UTC, datetime

    from cli.nodes import renew as ask
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        identity = await ask(identity_dir, registry or read_profile(data).registry_address)
        until = datetime.fromtimestamp(identity.certificate.expires_wall_s, UTC)
        typer.echo(f"{identity.role.value} {identity.node_id} is certified until {until:%Y-%m-%d %H:%M}")

    run(work())


def join(
    line: Annotated[str, typer.Argument(help="the line that `penstock nodes invite` printed; - reads it from stdin")],
    identity_dir: IdentityDir,
    host: Annotated[list[str] | None, typer.Option(help="name or address this machine is reached at; repeatable")] = None,
) -> None:
    """Make this machine a node of a mesh, with a join token."""
    import sys

    from cli.join import join as enrol
    from cli.join import own_hosts
    from cli.run import run

    async def work() -> None:
        text = sys.stdin.readline() if line == "-" else line
        identity = await enrol(text, identity_dir, tuple(host or own_hosts()))
        typer.echo(f"joined as {identity.role.value} {identity.node_id}; the identity is in {identity_dir}")

    run(work())
