"""Options that several commands share, spelled once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[
    Path | None, typer.Option("--data", help="where `penstock up` keeps its data [default: $PENSTOCK_DATA or .penstock]")
]
Address = Annotated[str, typer.Option("--address", help="gateway's gRPC address, host:port, instead of the data folder's")]
Url = Annotated[str, typer.Option("--url", help="HTTP address instead of the data folder's, such as http://127.0.0.1:8080")]
Key = Annotated[str, typer.Option("--key", help="API key instead of the data folder's", envvar="PENSTOCK_API_KEY")]
