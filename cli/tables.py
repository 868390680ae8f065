"""Tables that stay readable: whole cells on a narrow terminal, and nothing cut where the output is a pipe."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

_PIPE_COLUMNS = 200


def console() -> Console:
    """Stdout; into a pipe it is as wide as its widest row needs."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=_PIPE_COLUMNS)


def table(*headings: str, title: str | None = None) -> Table:
    """A table without a frame. A cell that does not fit goes on in the next line."""
    made = Table(box=box.SIMPLE, title=title, pad_edge=False, title_justify="left")
    for heading in headings:
        made.add_column(heading, overflow="fold")
    return made
