"""`penstock fleet …`: the workers; without more words, a row for each. `explain` and `policy`: how requests find their way."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import options

app = typer.Typer(help="Show the workers, what they hold and how they are; explain and rule where requests go.")
policy = typer.Typer(no_args_is_help=True, help="The rules by which requests are routed.")
app.add_typer(policy, name="policy")


@app.callback(invoke_without_command=True)
def fleet(context: typer.Context, data: options.Data = None) -> None:
    """Show the workers, what they hold and how they are."""
    if context.invoked_subcommand is not None:
        return
    from cli.fleet import show_fleet
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        await show_fleet(read_profile(data))

    run(work())


@app.command()
def explain(
    model: Annotated[str, typer.Argument(help="model name")],
    version: Annotated[str, typer.Option(help="model version [default: the newest that is ready]")] = "",
    tenant: Annotated[str, typer.Option(help="whose request it would be")] = "",
    region: Annotated[str, typer.Option(help="where it would come in [default: the scheduler's region]")] = "",
    session: Annotated[str, typer.Option(help="session key, as the application names it")] = "",
    prompt: Annotated[str, typer.Option(help="the beginning of a prompt")] = "",
    strategy: Annotated[str, typer.Option(help="another strategy than the policy's")] = "",
    exclude: Annotated[list[str] | None, typer.Option(help="worker that it failed on already; repeatable")] = None,
    limit: Annotated[int, typer.Option(min=1, help="candidates to show")] = 20,
    data: options.Data = None,
) -> None:
    """Show where a request would go: every candidate, each part of its score, and why it lost."""
    from penstock.scheduler.v1 import scheduler_pb2

    from cli.fleet_explain import show_explanation
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        request = scheduler_pb2.ExplainRequest(
            model=model,
            version=version,
            region=region,
            tenant=tenant,
            session_key=session,
            prompt=prompt,
            exclude_worker_ids=exclude or [],
            strategy=strategy,
        )
        await show_explanation(read_profile(data), request, limit)

    run(work())


@policy.command("show")
def show_policy(data: options.Data = None) -> None:
    """Print the rules as TOML, to be changed and set again."""
    from cli.fleet_policy import show_policy
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        await show_policy(read_profile(data))

    run(work())


@policy.command("set")
def set_policy(
    file: Annotated[Path, typer.Argument(help="TOML with [[rules]], as `penstock fleet policy show` prints it")],
    force: Annotated[bool, typer.Option("--force", help="whichever generation it replaces")] = False,
    data: options.Data = None,
) -> None:
    """Replace the rules. Gateways follow within moments; where the file names a generation, only that one is replaced."""
    from cli.fleet_policy import set_policy
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        await set_policy(read_profile(data), file, force=force)

    run(work())
