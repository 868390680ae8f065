"""A page about the runs: what was simulated, a table that compares, a plot for each thing that was measured.

One HTML file with its plots inside, and the numbers as JSON beside it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

from benchmarks.plots import Line, Span, line_plot
from benchmarks.simulation.tally import percentile
from benchmarks.simulation.types import Sample, Scenario
from benchmarks.simulation.world import World

_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:1000px;margin:2em auto;color:#1f2328}table{border-collapse:collapse;width:100%}"
    "td,th{padding:.3em .6em;border-bottom:1px solid #d0d7de;text-align:right}td:first-child,th:first-child{text-align:left}"
    "p.note{color:#57606a}"
)


@dataclass(frozen=True, slots=True)
class Run:
    """One strategy's whole run."""

    name: str
    samples: Sequence[Sample]
    requests: int
    served: int
    refused: int
    expired: int
    lost: int
    p50_s: float
    p99_s: float
    wait_p99_s: float
    utilisation: float
    imbalance: float
    loads: int
    evictions: int
    affinity: float
    cost_per_request: float
    took_s: float
    """Of real time."""


def run_of(name: str, world: World, took_s: float) -> Run:
    """The sums of a run that has ended."""
    tally, samples = world.tally, world.tally.samples
    latencies, waits = sorted(tally.latencies_s), sorted(tally.waits_s)
    settled = samples[len(samples) // 5 :] or samples
    return Run(
        name,
        samples,
        tally.requests,
        len(latencies),
        tally.refused,
        tally.expired,
        tally.lost,
        percentile(latencies, 0.5),
        percentile(latencies, 0.99),
        percentile(waits, 0.99),
        _mean([each.utilisation for each in settled]),
        _mean([each.imbalance for each in settled]),
        sum(machine.loads for machine in world.machines),
        sum(machine.evictions for machine in world.machines),
        tally.session_hits / tally.session_turns if tally.session_turns else 0.0,
        tally.cost / max(1, len(tally.waits_s)),
        took_s,
    )


_COLUMNS: Mapping[str, Callable[[Run], str]] = {
    "strategy": lambda run: run.name,
    "served": lambda run: f"{run.served:,}",
    "refused, expired": lambda run: f"{run.refused + run.expired:,}",
    "lost": lambda run: f"{run.lost:,}",
    "p50 s": lambda run: f"{run.p50_s:.2f}",
    "p99 s": lambda run: f"{run.p99_s:.1f}",
    "wait p99 s": lambda run: f"{run.wait_p99_s:.2f}",
    "utilisation": lambda run: f"{run.utilisation:.0%}",
    "imbalance": lambda run: f"{run.imbalance:.2f}",
    "loads": lambda run: f"{run.loads:,}",
    "evictions": lambda run: f"{run.evictions:,}",
    "affinity": lambda run: f"{run.affinity:.0%}",
    "cost": lambda run: f"{run.cost_per_request:.2f}",
}
COLUMNS = tuple(_COLUMNS)

_PLOTS: tuple[tuple[str, str, Callable[[Sample], float]], ...] = (
    ("Latency, 50th percentile", "s", lambda sample: sample.p50_s),
    ("Latency, 99th percentile", "s", lambda sample: sample.p99_s),
    ("Wait for a place, 99th percentile", "s", lambda sample: sample.wait_p99_s),
    ("Utilisation of workers that hold something", "%", lambda sample: sample.utilisation * 100),
    ("Imbalance: standard deviation over mean of occupancy", "", lambda sample: sample.imbalance),
    ("Loads", "in 10 s", lambda sample: sample.loads),
    ("Evictions", "in 10 s", lambda sample: sample.evictions),
    ("Refused and expired", "in 10 s", lambda sample: sample.refused + sample.expired),
    ("Sessions that found their last worker", "%", lambda sample: sample.affinity * 100),
)


def row(run: Run) -> list[str]:
    """As COLUMNS has them."""
    return [told(run) for told in _COLUMNS.values()]


def write_report(folder: Path, name: str, scenario: Scenario, runs: Sequence[Run], machine: str, when: str) -> Path:
    """`<name>.html` and `<name>.json` in the folder; the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"when": when, "machine": machine, "scenario": asdict(scenario), "runs": [asdict(run) for run in runs]}
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1))
    page = folder / f"{name}.html"
    page.write_text(_page(name, scenario, runs, machine, when))
    return page


def _page(name: str, scenario: Scenario, runs: Sequence[Run], machine: str, when: str) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in COLUMNS)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row(run)) + "</tr>" for run in runs)
    spans = [Span(f"{cut.region} cut off", cut.start_s, cut.end_s) for cut in scenario.partitions]
    plots = [
        line_plot(
            title, "virtual s", unit, [Line(run.name, [(each.at_s, read(each)) for each in run.samples]) for run in runs], spans
        )
        for title, unit, read in _PLOTS
    ]
    churn = f"{scenario.churn.joins} machines join and {scenario.churn.leaves} leave without a word"
    what = (
        f"{scenario.workers:,} workers of three kinds in seven regions, {scenario.models} models asked for by Zipf's law "
        f"(exponent {scenario.zipf:g}), {scenario.requests_per_s:g} requests a second at most for {scenario.seconds:g} virtual "
        f"seconds, loaded on demand from nothing. {churn}."
    )
    return (
        f"<!doctype html><meta charset=utf-8><title>{escape(name)}</title><style>{_STYLE}</style><h1>Strategies compared</h1>"
        f"<p>{escape(what)}</p><table><tr>{head}</tr>{body}</table>"
        f'<p class="note">{escape(when)}. {escape(machine)}. Decided by the code of <code>placement/</code>; machines, work '
        "and failures are made up. The same seed gives the same run.</p>" + "\n".join(plots)
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
