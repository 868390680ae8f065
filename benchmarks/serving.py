"""What a request costs: CPU seconds per 1,000 requests and latency, for bare, worker alone and the whole mesh, interleaved.

All servers run at once and are loaded in turn, round after round, so that what the machine does meanwhile hits all alike. CPU
is user + system time of a server's whole process tree; the mesh's includes etcd, registry, scheduler and Envoy. Ratios are
to bare at the same number in flight, in the same round; the median over rounds is printed beside the bar.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import psutil
from inference import grpc_service_pb2
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "cli" / "demo" / "digits"
BAR = {
    "worker": {1: 1.1, 8: 0.9, 32: 0.8},
    "mesh": {1: 1.8, 8: 1.1, 32: 0.95},
}


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    address: str
    key: str
    pid: int


@dataclass(frozen=True, slots=True)
class Sample:
    target: str
    in_flight: int
    round: int
    requests: int
    cpu_s_per_1000: float
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    failures: dict[str, int]


def request_payload() -> bytes:
    """One row for `digits`: FP32 [1, 1, 8, 8]."""
    pixels = np.random.default_rng(7).random((1, 1, 8, 8), dtype=np.float32)
    request = grpc_service_pb2.ModelInferRequest(model_name="digits")
    request.inputs.add(name="image", datatype="FP32", shape=pixels.shape)
    request.raw_input_contents.append(pixels.tobytes())
    return request.SerializeToString()


@contextmanager
def child(
    command: list[str], ready: Path, log: Path, timeout_s: float = 60
) -> Iterator[tuple[subprocess.Popen[bytes], dict[str, object]]]:
    """A server process and what it announced; ended by its own id."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "gen")))}
    with log.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment, cwd=ROOT)
    try:
        end_s = time.monotonic() + timeout_s
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > end_s:
                raise SystemExit(f"{command[0:3]} did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.05)
        yield process, json.loads(ready.read_text())
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def start_all(stack: ExitStack, folder: Path, *, empty: bool) -> list[Target]:
    python = sys.executable
    targets = []
    bare = [python, "-m", "benchmarks.bare", "--ready-file", str(folder / "bare.json"), "--model", str(MODEL / "model.onnx")]
    process, ports = stack.enter_context(child(bare, folder / "bare.json", folder / "bare.log"))
    targets.append(Target("bare", f"127.0.0.1:{ports['kserve_port']}", "", process.pid))
    if empty:
        command = [python, "-m", "benchmarks.bare", "--ready-file", str(folder / "empty.json")]
        process, ports = stack.enter_context(child(command, folder / "empty.json", folder / "empty.log"))
        targets.append(Target("empty", f"127.0.0.1:{ports['kserve_port']}", "", process.pid))
    worker = [python, "-m", "cli", "worker", "--standalone", "--model-folder", str(MODEL), "--kserve-port", "0"]
    worker += ["--ready-file", str(folder / "worker.json")]
    process, ports = stack.enter_context(child(worker, folder / "worker.json", folder / "worker.log"))
    targets.append(Target("worker", f"127.0.0.1:{ports['kserve_port']}", "", process.pid))
    data = folder / "mesh"
    mesh = [python, "-m", "cli", "up", "--data", str(data), "--workers", "1", "--grpc-port", "0", "--http-port", "0"]
    process, _ = stack.enter_context(child(mesh, data / "ready", folder / "mesh.log", timeout_s=120))
    client = json.loads((data / "client.json").read_text())
    targets.append(Target("mesh", client["grpc_address"], client["api_key"], process.pid))
    return targets


def tree_cpu_s(pid: int) -> float:
    """User + system seconds of a process and everything below it."""
    root = psutil.Process(pid)
    total = 0.0
    for process in (root, *root.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def measure(
    target: Target, payload: bytes, in_flight: int, duration_s: float, round_number: int, rate_per_s: float = 0.0
) -> Sample:
    command = [sys.executable, "-m", "benchmarks.load", "--address", target.address, "--key", target.key]
    command += ["--in-flight", str(in_flight), "--rate-per-s", str(rate_per_s), "--duration-s", str(duration_s)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "gen")))}
    before_s = tree_cpu_s(target.pid)
    done = subprocess.run(command, input=base64.b64encode(payload), capture_output=True, check=True, env=environment, cwd=ROOT)
    cpu_s = tree_cpu_s(target.pid) - before_s
    result = json.loads(done.stdout)
    requests = int(result["requests"])
    if not requests:
        raise SystemExit(f"{target.name} answered nothing: {result['failures']}")
    return Sample(
        target.name,
        in_flight,
        round_number,
        requests,
        1000 * cpu_s / requests,
        requests / float(result["elapsed_s"]),
        result["p50_ms"],
        result["p99_ms"],
        result["failures"],
    )


def ratio(samples: list[Sample], target: str, in_flight: int) -> float:
    """Median over rounds of CPU per request, in multiples of bare in the same round."""
    cost = {(s.target, s.round): s.cpu_s_per_1000 for s in samples if s.in_flight == in_flight}
    rounds = {r for _, r in cost}
    return statistics.median(cost[target, r] / cost["bare", r] for r in rounds)


def table(samples: list[Sample]) -> Table:
    printed = Table(title="CPU per request and latency, medians over rounds", caption=machine())
    for heading in ("server", "in flight", "CPU s / 1,000", "× bare", "bar", "requests/s", "p50 ms", "p99 ms", "failed"):
        printed.add_column(heading, justify="left" if heading == "server" else "right")
    for in_flight in sorted({s.in_flight for s in samples}):
        for target in dict.fromkeys(s.target for s in samples):
            mine = [s for s in samples if s.target == target and s.in_flight == in_flight]
            value, bar = ratio(samples, target, in_flight), BAR.get(target, {}).get(in_flight)
            colour = "" if bar is None else "[green]" if value <= bar else "[red]"
            printed.add_row(
                target,
                str(in_flight),
                f"{statistics.median(s.cpu_s_per_1000 for s in mine):.3f}",
                f"{colour}{value:.2f}",
                "" if bar is None else f"{bar:.2f}",
                f"{statistics.median(s.requests_per_s for s in mine):.0f}",
                f"{statistics.median(s.p50_ms for s in mine):.2f}",
                f"{statistics.median(s.p99_ms for s in mine):.2f}",
                str(sum(sum(s.failures.values()) for s in mine)),
            )
        printed.add_section()
    return printed


def added_latency(samples: list[Sample], open_samples: list[Sample], rate_per_s: float) -> Table:
    """What the mesh adds at half of its own load, requests arriving at random."""
    printed = Table(title=f"open load of {rate_per_s:.0f} requests/s, half of what the mesh answers", caption=machine())
    for heading in ("server", "p50 ms", "p99 ms", "p50 added", "p99 added", "failed"):
        printed.add_column(heading, justify="left" if heading == "server" else "right")
    medians = {}
    for target in dict.fromkeys(s.target for s in samples if s.target != "empty"):
        mine = [s for s in open_samples if s.target == target]
        medians[target] = (statistics.median(s.p50_ms for s in mine), statistics.median(s.p99_ms for s in mine))
        added = [f"{value - bare:+.2f}" for value, bare in zip(medians[target], medians["bare"], strict=True)]
        failed = str(sum(sum(s.failures.values()) for s in mine))
        printed.add_row(target, *(f"{value:.2f}" for value in medians[target]), *added, failed)
    return printed


def machine() -> str:
    memory_gib = psutil.virtual_memory().total >> 30
    return f"{psutil.cpu_count()} cores, {memory_gib} GiB, Python {platform.python_version()}, load on loopback"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--duration-s", type=float, default=3.0)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--empty", action="store_true", help="measure an empty grpc.aio handler too")
    parser.add_argument("--output", type=Path, default=None, help="write the samples as JSON")
    arguments = parser.parse_args()
    console, payload, samples = Console(), request_payload(), list[Sample]()
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name, ExitStack() as stack:
        targets = start_all(stack, Path(name), empty=arguments.empty)
        for target in targets:
            measure(target, payload, 8, 1.0, -1)
        total = arguments.rounds * len(arguments.in_flight) * len(targets)
        with Progress(console=console) as progress:
            bar = progress.add_task("measuring", total=total)
            for round_number in range(arguments.rounds):
                for in_flight in arguments.in_flight:
                    for target in targets:
                        samples.append(measure(target, payload, in_flight, arguments.duration_s, round_number))
                        progress.advance(bar)
        saturated = [s.requests_per_s for s in samples if s.target == "mesh" and s.in_flight == max(arguments.in_flight)]
        rate_per_s, open_samples = statistics.median(saturated) / 2, list[Sample]()
        for round_number in range(arguments.rounds):
            for target in targets:
                if target.name != "empty":
                    open_samples.append(measure(target, payload, 0, arguments.duration_s, round_number, rate_per_s))
    console.print(table(samples))
    console.print(added_latency(samples, open_samples, rate_per_s))
    if arguments.output:
        when = datetime.now(UTC).isoformat(timespec="seconds")
        content: dict[str, object] = {"when": when, "machine": machine(), "samples": [asdict(s) for s in samples]}
        content["open_load"] = {"rate_per_s": rate_per_s, "samples": [asdict(s) for s in open_samples]}
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
