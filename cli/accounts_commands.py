"""`penstock users …` and `penstock tenants …`. Passwords come from a prompt or from stdin, never from the command line."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from cli import options
from cli.keys_commands import Role

users = typer.Typer(no_args_is_help=True, help="People who administer a tenant.")
tenants = typer.Typer(no_args_is_help=True, help="Whose models, keys and users are kept apart.")


@users.command()
def create(
    name: Annotated[str, typer.Argument(help="what the user logs in by")],
    tenant: Annotated[str, typer.Option(help="tenant that the user belongs to")] = "default",
    role: Annotated[Role, typer.Option(help="what the user is to the tenant")] = "owner",
    data: options.Data = None,
) -> None:
    """Make a user. The password is asked for, or read from stdin: 12 characters at least."""
    from cli.accounts import create_user
    from cli.profile import read_profile
    from cli.run import run

    password = _password()

    async def work() -> None:
        await create_user(read_profile(data), name, tenant, role, password)

    run(work())


@users.command("list")
def list_users(tenant: Annotated[str, typer.Option(help="only this tenant's")] = "", data: options.Data = None) -> None:
    """Show the users."""
    from cli.accounts import show_users
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        await show_users(read_profile(data), tenant)

    run(work())


@users.command()
def update(
    name: Annotated[str, typer.Argument(help="what the user logs in by")],
    role: Annotated[Role | None, typer.Option(help="another role")] = None,
    password: Annotated[bool, typer.Option("--password", help="ask for another password, or read it from stdin")] = False,
    disable: Annotated[bool | None, typer.Option("--disable/--enable", help="whether the user may log in")] = None,
    data: options.Data = None,
) -> None:
    """Change a user. Another password, or --disable, ends the user's sessions."""
    from cli.accounts import UserUpdate, update_user
    from cli.profile import read_profile
    from cli.run import run

    changed = UserUpdate(role, _password() if password else None, disable)

    async def work() -> None:
        await update_user(read_profile(data), name, changed)

    run(work())


@tenants.command("create")
def create_tenant_command(name: str, data: options.Data = None) -> None:
    """Make a tenant."""
    from cli.accounts import create_tenant
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        await create_tenant(read_profile(data), name)

    run(work())


@tenants.command("list")
def list_tenants(data: options.Data = None) -> None:
    """Show the tenants."""
    from cli.accounts import show_tenants
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        await show_tenants(read_profile(data))

    run(work())


def _password() -> str:
    """Typed twice at a terminal; else the first line of stdin."""
    if sys.stdin.isatty():
        typed: str = typer.prompt("password", hide_input=True, confirmation_prompt=True, err=True)
        return typed
    password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise typer.BadParameter("stdin holds no password; type it at a terminal, or pipe it in as one line")
    return password
