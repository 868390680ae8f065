"""Batching on a real encoder: sentences a second as served, beside what its engine does alone on batches of the same size.

One worker process, one row to a request, a client of its own; the engine is ONNX Runtime with the same file, options and one
thread, run by this process while the worker is idle. Served and alone take turns, round after round; the ratio is the median.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import onnxruntime
from inference import grpc_service_pb2 as pb
from inference import grpc_service_pb2_grpc as rpc
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.serving import Target, child, machine, measure
from tests.support.minilm import INPUTS, OUTPUT, exported, missing

BAR = 0.9
"""Of the engine's own rate on batches as large as the number in flight."""


@dataclass(frozen=True, slots=True)
class Round:
    """Rows a second, and rows in a served execution on average."""

    in_flight: int
    served_per_s: float
    rows_per_execution: float
    alone_per_s: float
    """Batches of as many rows as were in flight."""
    alone_same_size_per_s: float
    """Batches of the size that serving came to."""
    p50_ms: float
    p99_ms: float
    failures: int


class Alone:
    """The engine by itself: no queue, no network."""

    def __init__(self, model: Path, tokens: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session: Any = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self._row = row_of(tokens)

    def rows_per_s(self, rows: int, duration_s: float) -> float:
        batch = {name: np.repeat(array, rows, axis=0) for name, array in self._row.items()}
        self._session.run([OUTPUT], batch)
        executions, begun_s = 0, time.perf_counter()
        while time.perf_counter() - begun_s < duration_s:
            self._session.run([OUTPUT], batch)
            executions += 1
        return rows * executions / (time.perf_counter() - begun_s)


def row_of(tokens: int) -> dict[str, np.ndarray[Any, np.dtype[np.int64]]]:
    """One text: int64 [1, tokens] each. Any words cost the same."""
    words = np.random.default_rng(3).integers(1_000, 30_000, (1, tokens), np.int64)
    return dict(zip(INPUTS, (words, np.ones_like(words), np.zeros_like(words)), strict=True))


def request_payload(tokens: int) -> bytes:
    request = pb.ModelInferRequest(model_name="minilm")
    for name, array in row_of(tokens).items():
        request.inputs.add(name=name, datatype="INT64", shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return request.SerializeToString()


async def counted(address: str) -> tuple[int, int]:
    """Rows and executions so far."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub = rpc.GRPCInferenceServiceStub(channel)
        (model,) = (await stub.ModelStatistics(pb.ModelStatisticsRequest(name="minilm"))).model_stats
    return model.inference_count, model.execution_count


def one_round(target: Target, alone: Alone, payload: bytes, in_flight: int, duration_s: float, number: int) -> Round:
    rows_before, executions_before = asyncio.run(counted(target.address))
    sample = measure(target, payload, in_flight, duration_s, number)
    rows, executions = asyncio.run(counted(target.address))
    average = (rows - rows_before) / max(1, executions - executions_before)
    return Round(
        in_flight,
        sample.requests_per_s,
        average,
        alone.rows_per_s(in_flight, duration_s / 2),
        alone.rows_per_s(max(1, round(average)), duration_s / 2),
        sample.p50_ms,
        sample.p99_ms,
        sum(sample.failures.values()),
    )


def table(rounds: list[Round], tokens: int) -> Table:
    printed = Table(title=f"all-MiniLM-L6-v2, {tokens} tokens a row, one thread: rows/s, medians", caption=machine())
    headings = ("in flight", "served", "rows/execution", "alone", "served/alone", "bar", "alone, same size", "p50 ms", "p99 ms")
    for heading in headings:
        printed.add_column(heading, justify="right")
    for in_flight in sorted({each.in_flight for each in rounds}):
        mine = [each for each in rounds if each.in_flight == in_flight]
        ratio = statistics.median(each.served_per_s / each.alone_per_s for each in mine)
        printed.add_row(
            str(in_flight),
            f"{statistics.median(each.served_per_s for each in mine):.1f}",
            f"{statistics.median(each.rows_per_execution for each in mine):.1f}",
            f"{statistics.median(each.alone_per_s for each in mine):.1f}",
            f"{'[green]' if ratio >= BAR else '[red]'}{ratio:.2f}",
            f"{BAR:.2f}",
            f"{statistics.median(each.alone_same_size_per_s for each in mine):.1f}",
            f"{statistics.median(each.p50_ms for each in mine):.0f}",
            f"{statistics.median(each.p99_ms for each in mine):.0f}",
        )
    return printed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-folder", type=Path, default=None, help="of tests.support.minilm; none: export it now")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--duration-s", type=float, default=8.0)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--output", type=Path, default=None, help="write the rounds as JSON")
    arguments = parser.parse_args()
    console, rounds = Console(width=None if sys.stdout.isatty() else 140), list[Round]()
    if arguments.model_folder is None and (absent := missing()):
        console.print(f"skipped: exporting the encoder needs {', '.join(absent)}; or name a --model-folder")
        return
    with tempfile.TemporaryDirectory(prefix="penstock-encoder-") as name, ExitStack() as stack:
        folder = Path(name)
        model = arguments.model_folder or exported(folder / "minilm")
        command = [sys.executable, "-m", "cli", "worker", "--standalone", "--kserve-port", "0", "--model-folder", str(model)]
        command += ["--ready-file", str(folder / "ready.json")]
        process, ports = stack.enter_context(child(command, folder / "ready.json", folder / "worker.log"))
        target = Target("worker", f"127.0.0.1:{ports['kserve_port']}", "", process.pid)
        alone, payload = Alone(model / "model.onnx", arguments.tokens), request_payload(arguments.tokens)
        plan = [(number, in_flight) for number in range(arguments.rounds) for in_flight in arguments.in_flight]
        measure(target, payload, 8, 1.0, -1)
        for number, in_flight in track(plan, "measuring", console=console):
            rounds.append(one_round(target, alone, payload, in_flight, arguments.duration_s, number))
    console.print(table(rounds, arguments.tokens))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        when = datetime.now(UTC).isoformat(timespec="seconds")
        content = {"when": when, "machine": machine(), "tokens": arguments.tokens, "rounds": [asdict(each) for each in rounds]}
        arguments.output.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
