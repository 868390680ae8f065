"""`penstock keys …`: create, list, rotate, revoke."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from cli import options

Role = Literal["owner", "publisher", "caller", "auditor"]
app = typer.Typer(no_args_is_help=True, help="API keys of applications.")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="what the key is for")],
    tenant: Annotated[str, typer.Option(help="tenant; made if there is none of that name")] = "default",
    role: Annotated[Role, typer.Option(help="what the key is to its tenant")] = "caller",
    scope: Annotated[
        list[str] | None, typer.Option(help="right such as infer or models:read; repeatable [default: all of the role]")
    ] = None,
    model: Annotated[list[str] | None, typer.Option(help="model it may call; repeatable [default: every model]")] = None,
    requests_per_s: Annotated[float, typer.Option(min=0, help="0 = no limit")] = 0,
    burst: Annotated[int, typer.Option(min=0, help="requests at once above the rate")] = 0,
    days: Annotated[float, typer.Option(min=0, help="lifetime; 0 = for ever")] = 0,
    data: options.Data = None,
) -> None:
    """Make a key. It is shown this once."""
    from cli.keys import NewKey, create_key
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        models, scopes, lifetime_s = tuple(model or ()), tuple(scope or ()), int(days * 86_400)
        await create_key(read_profile(data), NewKey(name, tenant, role, models, scopes, requests_per_s, burst, lifetime_s))

    run(work())


@app.command("list")
def list_keys(tenant: Annotated[str, typer.Option(help="only this tenant's")] = "", data: options.Data = None) -> None:
    """Show the keys; never their secrets."""
    from cli.keys import show_keys
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        await show_keys(read_profile(data), tenant)

    run(work())


@app.command()
def rotate(
    key_id: str,
    overlap_hours: Annotated[float, typer.Option(min=0, help="how long the old key still works; 0 = it ends now")] = 24,
    data: options.Data = None,
) -> None:
    """Make a key that takes over from another, with the same rights. It is shown this once."""
    from cli.keys import rotate_key
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        await rotate_key(read_profile(data), key_id, int(overlap_hours * 3600))

    run(work())


@app.command()
def revoke(key_id: str, data: options.Data = None) -> None:
    """End a key, everywhere within a second."""
    from cli.keys import revoke_key
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        await revoke_key(read_profile(data), key_id)

    run(work())
