"""`penstock models bundle-key|sign-bundle|verify-bundle`: OpenSSF model-signing bundles. Added to `cli.models_commands`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

_FOLDER = typer.Argument(help="folder with the model's files", exists=True, file_okay=False)


def add_bundle_commands(app: typer.Typer) -> None:
    app.command("bundle-key")(bundle_key)
    app.command("sign-bundle")(sign_bundle)
    app.command("verify-bundle")(verify_bundle)


def bundle_key(
    file: Annotated[Path, typer.Argument(help="where to write the private key; the public one goes beside it")],
) -> None:
    """Make a P-256 key for signing bundles."""

    def work() -> str:
        from cli.signatures import make_bundle_key

        public_key = make_bundle_key(file)
        return f"wrote {file}, for you alone, and {public_key}, for those who verify"

    _say(work)


def sign_bundle(
    folder: Annotated[Path, _FOLDER],
    key: Annotated[Path, typer.Option(help="private key in PEM, on P-256, P-384 or P-521")],
) -> None:
    """Write an OpenSSF model-signing bundle over a folder into its model.sig."""

    def work() -> str:
        from cli import signatures

        return f"signed: {signatures.sign_bundle(folder, key)}"

    _say(work)


def verify_bundle(
    folder: Annotated[Path, _FOLDER],
    key: Annotated[Path, typer.Option(help="public key in PEM, of who made the bundle")],
) -> None:
    """Check that a folder is what its model.sig was made over."""

    def work() -> str:
        from cli import signatures

        return f"{signatures.verify_bundle(folder, key)} files are as the owner of {key} signed them"

    _say(work)


def _say(work: Callable[[], str]) -> None:
    from cli.run import run
    from cli.tables import console

    async def worked() -> str:
        return await asyncio.to_thread(work)

    console().print(run(worked()), markup=False, highlight=False)
