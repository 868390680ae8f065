"""`penstock limits …`: set, list, remove."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from cli import options

WhenUnsure = Literal["share", "refuse"]
MOST_32, MOST = 2**31 - 1, 10**15
app = typer.Typer(no_args_is_help=True, help="How much of the mesh tenants, keys and models may use.")


@app.command("set")
def set_limit_command(
    tenant: Annotated[str, typer.Option(help="tenant whose requests count [default: everybody's]")] = "",
    key_id: Annotated[str, typer.Option(help="key whose requests count, as `penstock keys list` shows it")] = "",
    model: Annotated[str, typer.Option(help="model that requests are for [default: all together]")] = "",
    each_tenant: Annotated[bool, typer.Option("--each-tenant", help="so much for each tenant, not for all together")] = False,
    each_key: Annotated[bool, typer.Option("--each-key", help="so much for each key, not for all together")] = False,
    requests_per_s: Annotated[float, typer.Option(min=0, help="requests a second; 0 = no limit, as for all of these")] = 0,
    burst: Annotated[int, typer.Option(min=0, max=MOST_32, help="requests at once [default: what a second allows]")] = 0,
    tokens_per_min: Annotated[int, typer.Option(min=0, max=MOST, help="tokens a minute, prompt and answer together")] = 0,
    concurrent: Annotated[int, typer.Option(min=0, max=MOST_32, help="requests that run at the same time")] = 0,
    requests_per_day: Annotated[int, typer.Option(min=0, max=MOST, help="requests from midnight to midnight, UTC")] = 0,
    tokens_per_day: Annotated[int, typer.Option(min=0, max=MOST, help="tokens from midnight to midnight, UTC")] = 0,
    when_unsure: Annotated[
        WhenUnsure, typer.Option(help="share: a gateway that hears from no other goes on with its part; refuse: it does not")
    ] = "share",
    data: options.Data = None,
) -> None:
    """Set a limit, or replace the one on the same tenant, key and model. Requests have to fit into all that apply."""
    from cli.limits import NewLimit, set_limit
    from cli.profile import read_profile
    from cli.run import run
    from runtime.errors import InvalidArgument

    async def work() -> None:
        if each_tenant and each_key:
            raise InvalidArgument("--each-tenant and --each-key are two limits; set one after the other")
        wanted = NewLimit(
            tenant=tenant,
            key_id=key_id,
            model=model,
            each_tenant=each_tenant,
            each_key=each_key,
            requests_per_s=requests_per_s,
            burst=burst,
            tokens_per_min=tokens_per_min,
            concurrent=concurrent,
            requests_per_day=requests_per_day,
            tokens_per_day=tokens_per_day,
            refuse=when_unsure == "refuse",
        )
        await set_limit(read_profile(data), wanted)

    run(work())


@app.command("list")
def list_limits(tenant: Annotated[str, typer.Option(help="only those on this tenant")] = "", data: options.Data = None) -> None:
    """Show who may use how much."""
    from cli.limits import show_limits
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        await show_limits(read_profile(data), tenant)

    run(work())


@app.command()
def remove(
    limit_id: Annotated[str, typer.Argument(help="limit, as `penstock limits list` shows it")], data: options.Data = None
) -> None:
    """Lift a limit, everywhere within a second."""
    from cli.limits import remove_limit
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        await remove_limit(read_profile(data), limit_id)

    run(work())
