"""What `penstock up` shows: a board of children while they start, then a table of endpoints and commands to paste."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from cli.child import Child, ChildState
from cli.profile import DEFAULT_DATA, Profile

_MARKS = {ChildState.READY: ("✓", "green"), ChildState.CRASHED: ("✗", "red"), ChildState.STOPPED: ("·", "dim")}


class ChildBoard:
    """A line per child that changes in place on a terminal; elsewhere a plain line per event worth one."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._children: dict[str, tuple[ChildState, str]] = {}
        self._note = "starting"
        self._live = Live(console=console, transient=True, refresh_per_second=12) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.finish()

    def update(self, child: Child, sentence: str) -> None:
        """A child changed its state."""
        before = self._children.get(child.spec.name)
        self._children[child.spec.name] = (child.state, sentence)
        if self._live is not None:
            self._live.update(self._drawn())
            return
        came_back = child.state is ChildState.READY and before is not None and before[0] is ChildState.STARTING
        if child.state is ChildState.CRASHED or came_back:
            style = "red" if child.state is ChildState.CRASHED else "green"
            self._console.print(Text(f"{child.spec.name}: {sentence}", style=style), soft_wrap=True)

    def say(self, note: str) -> None:
        """What is going on."""
        self._note = note
        if self._live is not None:
            self._live.update(self._drawn())
        else:
            self._console.print(Text(note, style="dim"))

    def finish(self) -> None:
        """From here on every event is a plain line."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _drawn(self) -> Table:
        grid = Table.grid(padding=(0, 1))
        for name, (state, sentence) in self._children.items():
            mark, style = _MARKS.get(state, ("", ""))
            grid.add_row(Text(mark, style=style) if mark else Spinner("dots"), name, Text(sentence, style="dim"))
        grid.add_row("", Text(self._note, style="bold"), "")
        return grid


def welcome(console: Console, profile: Profile, data: Path, *, demo: bool, took_s: float) -> None:
    """Endpoints, key, and lines to paste."""
    rows = {"KServe v2 (gRPC)": profile.grpc_address}
    if profile.http_url:
        rows["OpenAI API (HTTP)"] = f"{profile.http_url}/v1"
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for what, where in {**rows, "data and logs": str(data)}.items():
        table.add_row(what, Text(where, style="bold"))
    console.print(Panel(table, title=f"the mesh answers, after {took_s:.1f} s", title_align="left", expand=False))
    # Not in the panel: a key that is cut to the terminal's width cannot be pasted.
    console.print(Text.assemble("API key  ", (profile.api_key, "bold")), soft_wrap=True)
    if demo:
        for line in commands(profile, data):
            console.print(Text(line), soft_wrap=True)
    console.print(Text("Ctrl-C stops everything in order.", style="dim"))


def commands(profile: Profile, data: Path) -> list[str]:
    """Ready to paste into another terminal, one line each."""
    where = "" if data == DEFAULT_DATA else f" --data {data}"
    lines = [f"penstock infer digits --image examples/digits/7.png{where}", f"penstock fleet{where}"]
    if profile.http_url:
        curl = f"curl -sN {profile.http_url}/v1/chat/completions -H 'authorization: Bearer {profile.api_key}'"
        body = '{"model": "sums", "messages": [{"role": "user", "content": "12+34"}]'
        lines += [f"penstock chat sums '12+34'{where}", f"{curl} -d '{body}}}'", f"{curl} -d '{body}, \"stream\": true}}'"]
    return lines
