"""Penstock's door beside LiteLLM's, before one mock of OpenAI's API; and beside a bare pass-through, before the same worker.

All servers are up at once and loaded in turn, round after round. CPU is user + system time of a server's whole process tree:
Penstock's has Envoy, gateway, worker (whose upstream engine makes the call), scheduler, registry and etcd. What is added to
latency is over the mock, or the worker, asked directly in the same round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.gateways.litellm import KEY, MODEL, litellm_environment, litellm_proxy
from benchmarks.serving import ROOT, Target, child, machine, measure, request_payload, tree_cpu_s

PUSHED = """
name = "mock"
engine = "upstream"
task = "chat"
[[inputs]]
name = "text_input"
datatype = "BYTES"
shape = [1]
[[outputs]]
name = "text_output"
datatype = "BYTES"
shape = [1]
"""
UPSTREAM = 'api = "openai"\nbase_url = "http://127.0.0.1:{port}/v1"\nmodel = "mock"\nmax_concurrency = 1024\n'
IN_FLIGHT = (1, 8, 32, 256)
PLAIN, EVENTS, TENSORS = "chat, whole", "chat, 21 events", "tensors (ModelInfer)"


@dataclass(frozen=True, slots=True)
class Row:
    """One server under one load."""

    kind: str
    target: str
    in_flight: int
    round: int
    requests: int
    requests_per_s: float
    cpu_ms_per_request: float
    p50_ms: float
    p99_ms: float
    pss_mib: float
    failures: dict[str, int]


@dataclass(frozen=True, slots=True)
class Door:
    """Something that speaks OpenAI's API."""

    name: str
    address: str
    key: str
    pid: int


def tree_pss_mib(pid: int) -> float:
    """Memory of a process and everything below it, shared pages by their share."""
    root, total = psutil.Process(pid), 0
    for process in (root, *root.children(recursive=True)):
        try:
            total += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return total / 2**20


def asked_http(door: Door, kind: str, in_flight: int, duration_s: float, number: int) -> Row:
    command = [sys.executable, "-m", "benchmarks.gateways.http_load", "--address", door.address, "--key", door.key]
    command += ["--model", MODEL, "--in-flight", str(in_flight), "--duration-s", str(duration_s)]
    command += ["--stream"] if kind == EVENTS else []
    before_s = tree_cpu_s(door.pid)
    done = subprocess.run(command, capture_output=True, check=True, cwd=ROOT)
    cpu_s, found = tree_cpu_s(door.pid) - before_s, json.loads(done.stdout)
    requests = int(found["requests"])
    if not requests:
        raise SystemExit(f"{door.name} answered nothing at {in_flight} in flight: {found['failures']}")
    return Row(
        kind,
        door.name,
        in_flight,
        number,
        requests,
        requests / found["elapsed_s"],
        1000 * cpu_s / requests,
        found["p50_ms"],
        found["p99_ms"],
        tree_pss_mib(door.pid),
        found["failures"],
    )


def asked_tensors(target: Target, in_flight: int, duration_s: float, number: int) -> Row:
    sample = measure(target, request_payload(), in_flight, duration_s, number)
    return Row(
        TENSORS,
        target.name,
        in_flight,
        number,
        sample.requests,
        sample.requests_per_s,
        sample.cpu_s_per_1000,
        sample.p50_ms,
        sample.p99_ms,
        tree_pss_mib(target.pid),
        sample.failures,
    )


@dataclass(frozen=True, slots=True)
class Started:
    doors: list[Door]
    tensors: list[Target]


def started(stack: ExitStack, folder: Path, litellm: Path | None) -> Started:
    """Everything that is compared, up at once."""
    own = [sys.executable, "-m"]
    command = [*own, "benchmarks.gateways.mock_upstream", "--ready-file", str(folder / "mock.json")]
    mock, ports = stack.enter_context(child(command, folder / "mock.json", folder / "mock.log"))
    port = int(str(ports["port"]))
    doors = [Door("the mock itself", f"127.0.0.1:{port}", "", mock.pid)]
    data = folder / "mesh"
    os.environ |= {"PENSTOCK_UPSTREAM_HOSTS": '["127.0.0.1"]', "PENSTOCK_KSERVE_PORT": "0"}
    command = [*own, "cli", "up", "--data", str(data), "--workers", "1", "--grpc-port", "0", "--http-port", "0"]
    mesh, _ = stack.enter_context(child(command, data / "ready", folder / "mesh.log", timeout_s=120))
    client = json.loads((data / "client.json").read_text())
    _push(folder / "mock-model", data, port)
    doors.append(Door("Penstock", client["http_url"].partition("//")[2], client["api_key"], mesh.pid))
    if litellm is not None:
        process, at = stack.enter_context(litellm_proxy(litellm, folder, port))
        doors.append(Door("LiteLLM", f"127.0.0.1:{at}", KEY, process.pid))
    worker = json.loads((data / "run" / "worker-1.json").read_text())
    direct = f"127.0.0.1:{worker['kserve_port']}"
    command = [*own, "benchmarks.gateways.pass_through", "--worker", direct, "--ready-file", str(folder / "pass.json")]
    passing, ports = stack.enter_context(child(command, folder / "pass.json", folder / "pass.log"))
    by_name = {name: _pid_of(mesh.pid, name) for name in ("worker-1", "gateway")}
    tensors = [
        Target("the worker itself", direct, "", by_name["worker-1"]),
        Target("pass-through (its own part)", f"127.0.0.1:{ports['kserve_port']}", "", passing.pid),
        Target("Penstock's gateway (its own part)", client["grpc_address"], client["api_key"], by_name["gateway"]),
    ]
    return Started(doors, tensors)


def _push(folder: Path, data: Path, port: int) -> None:
    folder.mkdir()
    (folder / "model.toml").write_text(PUSHED)
    (folder / "upstream.toml").write_text(UPSTREAM.format(port=port))
    environment = {**os.environ, "PENSTOCK_DATA": str(data)}
    command = [sys.executable, "-m", "cli", "models", "push", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"the mock's model could not be pushed: {done.stderr}")


def _pid_of(root: int, name: str) -> int:
    for process in psutil.Process(root).children(recursive=True):
        if any(word.endswith(f"/run/{name}.json") for word in process.cmdline()):
            return process.pid
    raise SystemExit(f"the mesh has no process {name}")


def table(rows: Iterable[Row], kind: str, base: str) -> Table:
    """Medians over rounds; what is added to latency is over `base`."""
    found = [row for row in rows if row.kind == kind]
    printed = Table(title=kind)
    for column in ("in flight", "server", "requests/s", "CPU ms/request", "p50 added ms", "p99 added ms", "PSS MiB", "failed"):
        printed.add_column(column, justify="left" if column == "server" else "right")
    for in_flight in sorted({row.in_flight for row in found}):
        here = [row for row in found if row.in_flight == in_flight]
        under = {row.round: row for row in here if row.target == base}
        for target in dict.fromkeys(row.target for row in here):
            printed.add_row(str(in_flight), target, *_medians([row for row in here if row.target == target], under))
    return printed


def _medians(rows: list[Row], under: dict[int, Row]) -> list[str]:
    values = (
        (row.requests_per_s for row in rows),
        (row.cpu_ms_per_request for row in rows),
        (row.p50_ms - under[row.round].p50_ms for row in rows),
        (row.p99_ms - under[row.round].p99_ms for row in rows),
        (row.pss_mib for row in rows),
    )
    failed = sum(sum(row.failures.values()) for row in rows)
    return [
        *(f"{statistics.median(each):.{digits}f}" for each, digits in zip(values, (0, 2, 2, 2, 0), strict=True)),
        str(failed),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--duration-s", type=float, default=4.0)
    parser.add_argument("--in-flight", type=int, nargs="+", default=list(IN_FLIGHT))
    parser.add_argument("--litellm", type=Path, default=None, help="folder to keep LiteLLM's environment in")
    parser.add_argument("--output", type=Path, default=None, help="write the samples as JSON")
    arguments = parser.parse_args()
    console, rows = Console(width=None if sys.stdout.isatty() else 140), list[Row]()
    with tempfile.TemporaryDirectory(prefix="penstock-gateways-") as name, ExitStack() as stack:
        folder = Path(name)
        litellm = litellm_environment(arguments.litellm or folder / "litellm", console)
        servers = started(stack, folder, litellm)
        for door in servers.doors:
            for kind in (PLAIN, EVENTS):
                asked_http(door, kind, 8, 1.0, -1)
        steps = arguments.rounds * len(arguments.in_flight) * (2 * len(servers.doors) + len(servers.tensors))
        with Progress(console=console) as progress:
            bar = progress.add_task("loading each in turn", total=steps)
            for number in range(arguments.rounds):
                for in_flight in arguments.in_flight:
                    for kind in (PLAIN, EVENTS):
                        for door in servers.doors:
                            rows.append(asked_http(door, kind, in_flight, arguments.duration_s, number))
                            progress.advance(bar)
                    for target in servers.tensors:
                        rows.append(asked_tensors(target, in_flight, arguments.duration_s, number))
                        progress.advance(bar)
    console.print(table(rows, PLAIN, "the mock itself"))
    console.print(table(rows, EVENTS, "the mock itself"))
    console.print(table(rows, TENSORS, "the worker itself"))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        when = datetime.now(UTC).isoformat(timespec="seconds")
        content = {"when": when, "machine": machine(), "rows": [asdict(row) for row in rows]}
        arguments.output.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
