"""`penstock models alias`, `promote`, `rollback` and `history`: names for versions."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import options

Expect = Annotated[
    str | None, typer.Option(help="do it only if the alias points at this version now; '' = only if it points at none")
]
Now = Annotated[bool, typer.Option("--now", help="at once, whether or not copies of the version are ready")]
Wait = Annotated[bool, typer.Option(help="wait until the version is warm and the alias has moved")]


def alias(
    model: str,
    word: Annotated[str, typer.Argument(metavar="ALIAS[=WEIGHT]", help="such as stable, or canary=10 for 10 % of requests")],
    version: Annotated[str, typer.Option(help="version it is to mean [default: what it means now]")] = "",
    expect: Expect = None,
    now: Now = False,
    wait: Wait = True,
    remove: Annotated[bool, typer.Option("--remove", help="take the alias away")] = False,
    data: options.Data = None,
) -> None:
    """Point an alias at a version, change its share of the requests, or remove it."""
    from cli.aliases import MoveOptions, alias_word, move_alias, remove_alias
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        profile, chosen = read_profile(data), alias_word(word)
        if remove:
            await remove_alias(profile, model, chosen, expect)
        else:
            await move_alias(profile, model, chosen, version, MoveOptions(expect, now, wait))

    run(work())


def promote(
    model: str,
    source: Annotated[str, typer.Option("--from", help="alias whose version is taken; it goes away")] = "canary",
    to: Annotated[str, typer.Option(help="alias that gets it")] = "stable",
    expect: Expect = None,
    now: Now = False,
    wait: Wait = True,
    data: options.Data = None,
) -> None:
    """Make the canary's version the stable one."""
    from cli.aliases import MoveOptions, promote_alias
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        await promote_alias(read_profile(data), model, source, to, MoveOptions(expect, now, wait))

    run(work())


def rollback(
    model: str,
    alias: Annotated[str, typer.Option(help="alias to take back")] = "stable",
    expect: Expect = None,
    now: Now = False,
    wait: Wait = True,
    data: options.Data = None,
) -> None:
    """Point an alias at the version it meant before; again: at the one before that."""
    from cli.aliases import MoveOptions, roll_back_alias
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        await roll_back_alias(read_profile(data), model, alias, MoveOptions(expect, now, wait))

    run(work())


def history(
    model: str,
    alias: Annotated[str, typer.Option(help="of this alias only")] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="moves to show, the newest ones")] = 100,
    data: options.Data = None,
) -> None:
    """Show every move of a model's aliases, newest first."""
    from cli.aliases import show_history
    from cli.profile import read_profile
    from cli.run import run

    async def work() -> None:
        await show_history(read_profile(data), model, alias, limit)

    run(work())


def add_alias_commands(app: typer.Typer) -> None:
    """To `penstock models`."""
    for command in (alias, promote, rollback, history):
        app.command()(command)
