"""Does a worker's memory stay flat? Small requests, cancelled streams, loads and unloads against one worker process, in turn.

The worker runs as anyone runs it alone, and its resident memory, threads and file descriptors are read from outside all the
while. Flat: after a tenth of each kind of work as warm-up, the median of its last fifth is within 5 % of that of its first.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc.aio
import httpx
import psutil
import uvloop
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.plots import Line, Span, line_plot
from benchmarks.serving import MODEL, child, machine
from benchmarks.soak_work import NotOffered, Tally, Work, cancelled_streams, load_cycles, small_requests
from tests.worker.markov import markov

MIB = 1 << 20
FLAT = 0.05
WARM_UP, EDGE = 0.1, 0.2
"""Parts of the work: not judged at its begin; compared at the begin and the end of the rest."""

ALPHABET = """
name = "alphabet"
engine = "llm"
task = "completion"
decoupled = true
[[inputs]]
name = "text_input"
datatype = "BYTES"
shape = [1]
[[outputs]]
name = "text_output"
datatype = "BYTES"
shape = [1]
"""


@dataclass(frozen=True, slots=True)
class Sample:
    phase: str
    at_s: float
    done: int
    rss_bytes: int
    threads: int
    descriptors: int


@dataclass(frozen=True, slots=True)
class Phase:
    """What one kind of work came to."""

    name: str
    done: int
    elapsed_s: float
    first_bytes: float
    last_bytes: float
    most_bytes: int
    threads: tuple[int, int]
    descriptors: tuple[int, int]
    failures: dict[str, int]
    in_flight: int
    """What the worker says is still open after the work."""
    not_offered: str = ""

    @property
    def growth(self) -> float:
        return self.last_bytes / self.first_bytes - 1 if self.first_bytes else 0.0


class Observed:
    """The worker's process, read every so often. Owns the samples."""

    def __init__(self, pid: int, every_s: float) -> None:
        self._process, self._every_s = psutil.Process(pid), every_s
        self._begun_s = time.monotonic()
        self.samples: list[Sample] = []

    def read(self, phase: str, done: int) -> None:
        with self._process.oneshot():
            memory, threads, files = self._process.memory_info(), self._process.num_threads(), self._process.num_fds()
        self.samples.append(Sample(phase, time.monotonic() - self._begun_s, done, memory.rss, threads, files))

    async def until(self, work: Awaitable[None], phase: str, tally: Tally, progress: Progress, count: int) -> None:
        """Read while the work goes on; raises what it raises."""
        bar = progress.add_task(phase, total=count)
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                self.read(phase, tally.done)
                progress.update(bar, completed=tally.done)
                await asyncio.wait((task,), timeout=self._every_s)
            await task
        finally:
            task.cancel()
            self.read(phase, tally.done)
            progress.update(bar, completed=tally.done)


def judged(name: str, samples: Sequence[Sample], tally: Tally, in_flight: int, not_offered: str) -> Phase:
    """A phase's samples without its warm-up: where its memory was at the begin of the rest, and where at the end."""
    total = samples[-1].done
    rest = [sample for sample in samples if sample.done >= WARM_UP * total] or list(samples)
    first = [s.rss_bytes for s in rest if s.done <= (WARM_UP + EDGE * (1 - WARM_UP)) * total] or [rest[0].rss_bytes]
    last = [s.rss_bytes for s in rest if s.done >= (1 - EDGE * (1 - WARM_UP)) * total] or [rest[-1].rss_bytes]
    return Phase(
        name,
        tally.done,
        samples[-1].at_s - samples[0].at_s,
        statistics.median(first),
        statistics.median(last),
        max(sample.rss_bytes for sample in samples),
        (rest[0].threads, rest[-1].threads),
        (rest[0].descriptors, rest[-1].descriptors),
        dict(tally.failures),
        in_flight,
        not_offered,
    )


async def left_in_flight(metrics_url: str) -> int:
    """Requests that the worker says are open, once it says the same twice; what is cancelled needs a moment to be gone."""
    async with httpx.AsyncClient() as client:
        before, now = -1, -2
        while now != before:
            await asyncio.sleep(0.3)
            text = (await client.get(metrics_url)).text
            before, now = now, int(float(text.split("\npenstock_worker_in_flight ")[1].split()[0]))
    return now


async def soak(
    address: str, metrics_url: str, observed: Observed, plan: Sequence[tuple[str, Work, int]], console: Console
) -> list[Phase]:
    phases = []
    with Progress(console=console) as progress:
        for name, work, count in plan:
            tally, not_offered, begin = Tally(), "", len(observed.samples)
            async with grpc.aio.insecure_channel(address) as channel:
                try:
                    await observed.until(work(channel, count, tally), name, tally, progress, count)
                except NotOffered as reason:
                    not_offered = str(reason)
            in_flight = await left_in_flight(metrics_url)
            phases.append(judged(name, observed.samples[begin:], tally, in_flight, not_offered))
    return phases


def table(phases: Sequence[Phase]) -> Table:
    printed = Table(title="a worker's memory under long work", caption=machine())
    headings = ("work", "done", "per s", "MiB first", "MiB last", "change", "MiB most", "threads", "files", "open", "failed")
    for heading in headings:
        printed.add_column(heading, justify="left" if heading == "work" else "right")
    for phase in phases:
        colour = "[green]" if abs(phase.growth) <= FLAT else "[red]"
        printed.add_row(
            phase.name,
            f"{phase.done:,}" if not phase.not_offered else "skipped",
            f"{phase.done / phase.elapsed_s:.0f}" if phase.elapsed_s else "",
            f"{phase.first_bytes / MIB:.1f}",
            f"{phase.last_bytes / MIB:.1f}",
            f"{colour}{phase.growth:+.1%}",
            f"{phase.most_bytes / MIB:.1f}",
            "→".join(map(str, phase.threads)),
            "→".join(map(str, phase.descriptors)),
            str(phase.in_flight),
            str(sum(phase.failures.values())),
        )
    return printed


def plot(samples: Sequence[Sample]) -> str:
    spans = []
    for name in dict.fromkeys(sample.phase for sample in samples):
        mine = [sample.at_s for sample in samples if sample.phase == name]
        spans.append(Span(name, mine[0], mine[-1]))
    line = Line("resident", [(sample.at_s, sample.rss_bytes / MIB) for sample in samples])
    return line_plot("A worker's memory under long work", "seconds", "MiB", [line], spans)


def write(output: Path, samples: Sequence[Sample], phases: Sequence[Phase]) -> None:
    """`output` without its ending: one JSON file and one SVG file."""
    output.parent.mkdir(parents=True, exist_ok=True)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    content = {"when": when, "machine": machine(), "phases": [asdict(phase) for phase in phases]}
    output.with_suffix(".json").write_text(json.dumps({**content, "samples": [asdict(s) for s in samples]}, indent=1))
    output.with_suffix(".svg").write_text(plot(samples))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--streams", type=int, default=100_000)
    parser.add_argument("--cycles", type=int, default=1_000)
    parser.add_argument("--every-s", type=float, default=0.5, help="between two readings of the worker's process")
    parser.add_argument("--output", type=Path, default=None, help="write samples (.json) and plot (.svg) under this name")
    arguments = parser.parse_args()
    plan: list[tuple[str, Work, int]] = [
        ("small requests", small_requests, arguments.requests),
        ("cancelled streams", cancelled_streams, arguments.streams),
        ("load and unload", load_cycles, arguments.cycles),
    ]
    console = Console(width=None if sys.stdout.isatty() else 140)
    with tempfile.TemporaryDirectory(prefix="penstock-soak-") as name, ExitStack() as stack:
        folder = Path(name)
        (markov(folder / "alphabet") / "model.toml").write_text(ALPHABET)
        command = [sys.executable, "-m", "cli", "worker", "--standalone", "--kserve-port", "0", "--metrics-port", "0"]
        command += ["--model-folder", str(MODEL), "--model-folder", str(folder / "alphabet")]
        command += ["--ready-file", str(folder / "ready.json"), "--log-level", "warning"]
        process, ports = stack.enter_context(child(command, folder / "ready.json", folder / "worker.log"))
        observed = Observed(process.pid, arguments.every_s)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            chosen = [each for each in plan if each[2]]
            address, metrics_url = f"127.0.0.1:{ports['kserve_port']}", f"http://127.0.0.1:{ports['metrics_port']}/metrics"
            phases = runner.run(soak(address, metrics_url, observed, chosen, console))
    console.print(table(phases))
    for phase in phases:
        for sentence, count in phase.failures.items():
            console.print(f"{phase.name}: {count} × {sentence}", markup=False)
        if phase.not_offered:
            console.print(f"{phase.name} skipped: {phase.not_offered}", markup=False)
    if arguments.output:
        write(arguments.output, observed.samples, phases)
    if any(phase.failures or phase.in_flight or abs(phase.growth) > FLAT for phase in phases if not phase.not_offered):
        sys.exit(1)


if __name__ == "__main__":
    main()
