"""`penstock requests …`: list, show, usage."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import options

app = typer.Typer(no_args_is_help=True, help="What became of your tenant's requests, and what they come to.")


@app.command("list")
def list_requests(
    model: Annotated[str, typer.Option(help="only of this model, as it was asked for or as it answered")] = "",
    failed: Annotated[bool, typer.Option("--failed", help="only those that did not end well")] = False,
    code: Annotated[str, typer.Option(help="only those that ended so, such as RESOURCE_EXHAUSTED")] = "",
    key_id: Annotated[str, typer.Option(help="only this key's, as `penstock keys list` shows it")] = "",
    since: Annotated[str, typer.Option(help="only those of the last 90s, 15m, 1h or 7d [default: all that is kept]")] = "",
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="requests to show, the newest ones")] = 50,
    data: options.Data = None,
    address: options.Address = "",
    key: options.Key = "",
) -> None:
    """Show requests, newest first. The gateway keeps them for 30 days, if it is not told otherwise."""
    from cli.profile import read_profile
    from cli.requests import RequestsQuestion, seconds, show_requests
    from cli.run import run

    async def work() -> None:
        asked = RequestsQuestion(model, code, key_id, failed, seconds(since), limit)
        await show_requests(read_profile(data, address=address, key=key), asked)

    run(work())


@app.command()
def show(
    request_id: Annotated[str, typer.Argument(help="request, as `x-request-id` or `penstock requests list` says it")],
    data: options.Data = None,
    address: options.Address = "",
    key: options.Key = "",
) -> None:
    """Show all that is known of one request."""
    from cli.profile import read_profile
    from cli.requests import show_request
    from cli.run import run

    async def work() -> None:
        await show_request(read_profile(data, address=address, key=key), request_id)

    run(work())


@app.command()
def usage(
    days: Annotated[int, typer.Option(min=1, max=400, help="days to show, today being the last")] = 30,
    model: Annotated[str, typer.Option(help="only of this model")] = "",
    key_id: Annotated[str, typer.Option(help="only this key's, as `penstock keys list` shows it")] = "",
    data: options.Data = None,
    address: options.Address = "",
    key: options.Key = "",
) -> None:
    """Show what was asked and answered, by day, model and key."""
    from cli.profile import read_profile
    from cli.requests import show_usage
    from cli.run import run

    async def work() -> None:
        await show_usage(read_profile(data, address=address, key=key), days, model, key_id)

    run(work())
