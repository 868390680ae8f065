"""`penstock models import`: from a Triton model repository or an ONNX file, with one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli import options


def import_path(
    path: Annotated[Path, typer.Argument(help="Triton model repository, one model's folder of it, or an .onnx file")],
    model: Annotated[str, typer.Option(help="of a repository: this model alone; else: the model's name")] = "",
    tenant: Annotated[str, typer.Option(help="whose the models are [default: default]")] = "",
    version: Annotated[str, typer.Option(help="this version alone; of an .onnx file: its number [default: the next one]")] = "",
    max_batch_size: Annotated[
        int, typer.Option(min=0, help="of models that take batches and do not say how large; 0 = 4, as Triton")
    ] = 0,
    copies: Annotated[int, typer.Option(min=0, help="workers to load each model's newest version on; 0 = none yet")] = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would be imported, and import nothing")] = False,
    data: options.Data = None,
) -> None:
    """Publish the models of a Triton repository, with their versions, as `config.pbtxt` and the files describe them."""
    from cli.import_models import import_models, show_models
    from cli.import_reading import Wanted
    from cli.profile import read_profile
    from cli.run import run
    from cli.tables import console

    wanted = Wanted(model, version, tenant, max_batch_size)

    async def work() -> None:
        if dry_run:
            await show_models(path, wanted, console())
        else:
            await import_models(read_profile(data), path, wanted, copies, console())

    run(work())
