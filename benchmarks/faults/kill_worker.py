"""kill -9 a worker under load, again and again: requests that failed, generations that broke, how long the slowest took.

Two workers hold `digits` and `sums`. Callers ask `digits` in a closed loop over gRPC; others read texts of `sums`, of known
seeds, and compare each with what it is when nobody dies. "Beyond normal" is the time of the slowest less the longest of the
same kind in the quiet round before. What dies is started again by `penstock up`.

Run: python -m benchmarks.faults.kill_worker [--kills 5] [--callers 8] [--readers 8] [--output FILE.json]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc.aio
import uvloop
from inference import grpc_service_pb2, grpc_service_pb2_grpc

from benchmarks.faults.ground import write
from tests.support.mesh import RunningMesh, running_mesh
from tests.support.steady_load import digit_request

BAR_S = 1.0
"""No request may take longer than this beyond its normal time."""

QUIET_S = 6.0
SETTLE_S = 3.0
SEEDS = (3, 4, 7, 10)
"""By which the demo model says much at this temperature."""
_TEMPERATURE = 3.0
_TIMEOUT_S = 30.0


@dataclass
class Kind:
    """What became of one kind of requests."""

    outcomes: Counter[str] = field(default_factory=Counter)
    took_s: list[float] = field(default_factory=list)

    @property
    def longest_s(self) -> float:
        return max(self.took_s, default=0.0)

    @property
    def failed(self) -> int:
        return sum(count for outcome, count in self.outcomes.items() if outcome != "ok")


@dataclass
class Load:
    """Callers and readers in closed loops."""

    mesh: RunningMesh
    callers: int
    readers: int
    unary: Kind = field(default_factory=Kind)
    texts: Kind = field(default_factory=Kind)
    known: dict[int, str] = field(default_factory=dict)

    def begin_anew(self) -> tuple[Kind, Kind]:
        """What there was so far; counting begins anew."""
        before, self.unary, self.texts = (self.unary, self.texts), Kind(), Kind()
        return before

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        stop = asyncio.Event()
        async with grpc.aio.insecure_channel(self.mesh.grpc_address) as channel:
            stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
            for seed in SEEDS:
                self.known[seed] = await self._text(stub, seed)
            async with asyncio.TaskGroup() as group:
                for number in range(self.callers):
                    group.create_task(self._call_on(stub, stop, number))
                for number in range(self.readers):
                    group.create_task(self._read_on(stub, stop, number))
                yield
                stop.set()

    async def _call_on(self, stub: grpc_service_pb2_grpc.GRPCInferenceServiceStub, stop: asyncio.Event, _: int) -> None:
        while not stop.is_set():
            kind, began_s = self.unary, time.monotonic()
            try:
                await stub.ModelInfer(digit_request(), metadata=self._metadata, timeout=_TIMEOUT_S)
                kind.outcomes["ok"] += 1
            except grpc.aio.AioRpcError as failure:
                kind.outcomes[f"{failure.code().name}: {failure.details()}"] += 1
            kind.took_s.append(time.monotonic() - began_s)

    async def _read_on(self, stub: grpc_service_pb2_grpc.GRPCInferenceServiceStub, stop: asyncio.Event, number: int) -> None:
        while not stop.is_set():
            kind, seed, began_s = self.texts, SEEDS[number % len(SEEDS)], time.monotonic()
            try:
                text = await self._text(stub, seed)
                kind.outcomes["ok" if text == self.known[seed] else "another text"] += 1
            except (grpc.aio.AioRpcError, RuntimeError) as failure:
                kind.outcomes[str(failure)] += 1
            kind.took_s.append(time.monotonic() - began_s)

    async def _text(self, stub: grpc_service_pb2_grpc.GRPCInferenceServiceStub, seed: int) -> str:
        request = grpc_service_pb2.ModelInferRequest(model_name="sums")
        tensor = request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
        tensor.contents.bytes_contents.append(b"What is 12 plus 30?")
        request.parameters["temperature"].double_param = _TEMPERATURE
        request.parameters["seed"].int64_param = seed
        call = stub.ModelStreamInfer(metadata=self._metadata, timeout=_TIMEOUT_S)
        await call.write(request)
        await call.done_writing()
        parts: list[bytes] = []
        async for answer in call:
            if answer.error_message:
                raise RuntimeError(answer.error_message)
            parts.extend(raw[4:] for raw in answer.infer_response.raw_output_contents)
        return b"".join(parts).decode()

    @property
    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.mesh.api_key}"),)


async def measure(mesh: RunningMesh, arguments: argparse.Namespace) -> dict[str, dict[str, object]]:
    load = Load(mesh, arguments.callers, arguments.readers)
    async with load.running():
        await asyncio.sleep(QUIET_S)
        quiet = load.begin_anew()
        for number in range(arguments.kills):
            os.kill(mesh.pid_of(f"worker-{1 + number % 2}"), signal.SIGKILL)
            await asyncio.sleep(SETTLE_S)
            while await asyncio.to_thread(_serving, mesh) < 2:
                await asyncio.sleep(0.5)
    return {
        name: {
            "outcomes": dict(kind.outcomes),
            "failed": kind.failed,
            "longest_quiet_s": round(calm.longest_s, 3),
            "longest_s": round(kind.longest_s, 3),
            "beyond_normal_s": round(max(0.0, kind.longest_s - calm.longest_s), 3),
        }
        for name, kind, calm in (("unary", load.unary, quiet[0]), ("texts", load.texts, quiet[1]))
    }


def _serving(mesh: RunningMesh) -> int:
    shown = mesh.penstock("fleet").stdout
    return min(shown.count("digits 1: READY"), shown.count("sums 1: READY")) if "no answer" not in shown else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--readers", type=int, default=8)
    parser.add_argument("--output", type=Path, default=None, help="write the result as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="penstock-faults-") as name, running_mesh(Path(name) / "data") as mesh:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            grpc.aio.init_grpc_aio()
            found = runner.run(measure(mesh, arguments))
    for kind, result in found.items():
        print(kind, result)
    if arguments.output:
        write(arguments.output, "kill worker", {"kills": arguments.kills, "callers": arguments.callers, **found})
    if any(result["failed"] or float(str(result["beyond_normal_s"])) > BAR_S for result in found.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
