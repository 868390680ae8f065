"""The front door for half an hour, while clients, keys and workers come and go: its memory and its event loop's lag.

`penstock up` as anyone runs it. Clients stay some seconds and go, some in the middle of an answer: over HTTP whole and as
events, over gRPC one request after another and as a stream. Keys are made, used and revoked; a worker is killed each minute and
comes back. Flat: the median memory of the gateway's last fifth is within 5 % of that of its first, after a tenth as warm-up.
Lag: what the gateway's own histogram counted in that time.

Run: python -m benchmarks.faults.front_door [--minutes 30] [--output FILE.json] [--plot FILE.svg]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import grpc.aio
import psutil
import uvloop

from benchmarks.faults.ground import write
from benchmarks.plots import Line, line_plot
from benchmarks.serving import ROOT, child, request_payload

FLAT = 0.05
WARM_UP, EDGE = 0.1, 0.2
LAG_BAR_S = 0.02
LOOK_S = 5.0
KEY_S, KILL_S = 10.0, 60.0
CHAT = {"model": "sums", "messages": [{"role": "user", "content": "12 + 34 ="}], "max_tokens": 16}
EXPECTED = (asyncio.CancelledError,)


@dataclass(slots=True)
class Front:
    """A mesh, and what came of what was asked of it."""

    pid: int
    grpc_address: str
    http_url: str
    data: Path
    keys: list[str]
    rng: random.Random
    outcomes: Counter[str] = field(default_factory=Counter)
    samples: list[tuple[float, dict[str, float]]] = field(default_factory=list)
    """Seconds since the start, and resident MiB by process."""

    def key(self) -> str:
        return self.rng.choice(self.keys)

    def processes(self) -> dict[str, psutil.Process]:
        found = {}
        for process in psutil.Process(self.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                words = process.cmdline()
                ready = next((Path(word).stem for word in words if "/run/" in word and word.endswith(".json")), "")
                found[ready or Path(words[0]).name] = process
        return found


async def whole(front: Front, session: aiohttp.ClientSession) -> None:
    async with session.post(f"{front.http_url}/v1/chat/completions", json=CHAT, headers=_bearer(front.key())) as answer:
        await answer.read()
        front.outcomes[f"http {answer.status}"] += 1


async def events(front: Front, session: aiohttp.ClientSession) -> None:
    """Every fifth reader goes away in the middle."""
    body = {**CHAT, "stream": True}
    async with session.post(f"{front.http_url}/v1/chat/completions", json=body, headers=_bearer(front.key())) as answer:
        if answer.status == 200 and front.rng.random() < 0.2:
            await answer.content.readany()
            front.outcomes["events left"] += 1
            return
        await answer.read()
        front.outcomes[f"events {answer.status}"] += 1


async def http_client(front: Front, until_s: float) -> None:
    """One client's life: a connection, requests, gone."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as session:
        while time.monotonic() < until_s:
            await (whole if front.rng.random() < 0.7 else events)(front, session)


async def grpc_client(front: Front, until_s: float) -> None:
    payload, metadata = request_payload(), tuple(_bearer(front.key()).items())
    async with grpc.aio.insecure_channel(front.grpc_address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        infer: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer", None, None
        )
        stream: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer", None, None
        )
        metadata = tuple((name.lower(), value) for name, value in metadata)
        while time.monotonic() < until_s:
            if front.rng.random() < 0.9:
                await infer(payload, metadata=metadata, timeout=60)
                front.outcomes["grpc OK"] += 1
            else:
                call = stream(metadata=metadata, timeout=60)
                await call.write(payload)
                await call.read()
                call.cancel()
                front.outcomes["stream OK"] += 1


async def comes_and_goes(front: Front, client: Callable[[Front, float], Awaitable[None]], end_s: float) -> None:
    """One client after another in the same place."""
    while (now_s := time.monotonic()) < end_s:
        try:
            await client(front, min(end_s, now_s + front.rng.uniform(1, 20)))
        except grpc.aio.AioRpcError as failure:
            front.outcomes[f"grpc {failure.code().name}"] += 1
        except (aiohttp.ClientError, TimeoutError) as failure:
            front.outcomes[f"http {type(failure).__name__}"] += 1


async def keys_change(front: Front, end_s: float) -> None:
    """A key is made and used; the one before last is revoked."""
    made: list[str] = []
    while time.monotonic() < end_s:
        await asyncio.sleep(KEY_S)
        created = await penstock(front, "keys", "create", f"soak-{len(made)}")
        secret = next((word for word in created.split() if word.startswith("sk-")), "")
        if secret:
            made.append(secret)
            front.keys.append(secret)
        if len(made) > 2:
            front.keys.remove(old := made[len(made) - 3])
            await asyncio.sleep(2)  # whoever holds it asks with it a moment longer
            await penstock(front, "keys", "revoke", old.split("-")[2])


async def workers_die(front: Front, end_s: float) -> None:
    while time.monotonic() + KILL_S < end_s:
        await asyncio.sleep(KILL_S)
        workers = [process for name, process in front.processes().items() if name.startswith("worker-")]
        front.rng.choice(workers).kill()
        front.outcomes["workers killed"] += 1


async def penstock(front: Front, *words: str) -> str:
    told = {**os.environ, "PENSTOCK_DATA": str(front.data), "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "gen")))}
    command, pipe = (sys.executable, "-m", "cli", *words), asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, env=told, cwd=ROOT)
    printed, _ = await process.communicate()
    if process.returncode:
        front.outcomes[f"penstock {words[0]} {words[1]} failed"] += 1
    return printed.decode()


async def looked_at(front: Front, end_s: float) -> None:
    began_s = time.monotonic()
    while time.monotonic() < end_s:
        seen = {}
        for name, process in front.processes().items():
            with suppress(psutil.NoSuchProcess):
                seen[name] = process.memory_info().rss / 2**20
        front.samples.append((time.monotonic() - began_s, seen))
        if len(front.samples) % 24 == 1:
            resident = f"gateway {seen.get('gateway', 0):.0f} MiB"
            print(f"{front.samples[-1][0]:6.0f} s: {resident}, {dict(front.outcomes)}", flush=True)
        await asyncio.sleep(LOOK_S)


async def lag(front: Front) -> dict[float, float]:
    """The gateway's histogram of its event loop's lag: counts up to each bound, in seconds."""
    port = json.loads((front.data / "run" / "gateway.json").read_text())["metrics_port"]
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = (await answer.text()).splitlines()
    found = {}
    for line in lines:
        if line.startswith("penstock_event_loop_lag_seconds_bucket"):
            bound = line.split('le="', 1)[1].split('"', 1)[0]
            found[float(bound)] = float(line.rsplit(" ", 1)[1])
    return found


def quantile(before: dict[float, float], after: dict[float, float], share: float) -> float:
    """The lowest bound that so many of the samples in between stay under."""
    counts = {bound: after[bound] - before.get(bound, 0.0) for bound in sorted(after)}
    total = max(counts.values(), default=0.0)
    return next((bound for bound, count in counts.items() if total and count >= share * total), float("inf"))


def _bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def soaked(front: Front, minutes: float, places: int) -> tuple[float, float]:
    """p50 and p99 of the lag, in seconds."""
    end_s, before = time.monotonic() + minutes * 60, await lag(front)
    async with asyncio.TaskGroup() as tasks:
        for number in range(places):
            tasks.create_task(comes_and_goes(front, http_client if number % 2 else grpc_client, end_s))
        tasks.create_task(keys_change(front, end_s))
        tasks.create_task(workers_die(front, end_s))
        tasks.create_task(looked_at(front, end_s))
    after = await lag(front)
    return quantile(before, after, 0.5), quantile(before, after, 0.99)


def growth(samples: list[tuple[float, dict[str, float]]], name: str) -> tuple[float, float]:
    """Median MiB of the first and of the last fifth, after the warm-up."""
    values = [seen[name] for _, seen in samples[int(len(samples) * WARM_UP) :] if name in seen]
    edge = max(1, int(len(values) * EDGE))
    return statistics.median(values[:edge]), statistics.median(values[-edge:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--places", type=int, default=12, help="clients at once")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, default=None, help="write the result as JSON")
    parser.add_argument("--plot", type=Path, default=None, help="write the memory over time as SVG")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="penstock-front-") as name, ExitStack() as stack:
        data = Path(name) / "mesh"
        command = [sys.executable, "-m", "cli", "up", "--data", str(data), "--workers", "2"]
        command += ["--grpc-port", "0", "--http-port", "0"]
        process, _ = stack.enter_context(child(command, data / "ready", Path(name) / "mesh.log", timeout_s=120))
        client = json.loads((data / "client.json").read_text())
        rng = random.Random(arguments.seed)
        front = Front(process.pid, client["grpc_address"], client["http_url"], data, [client["api_key"]], rng)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            p50_s, p99_s = runner.run(soaked(front, arguments.minutes, arguments.places))
    grown = {name: growth(front.samples, name) for name in ("gateway", "envoy", "scheduler", "registry")}
    for name, (first, last) in grown.items():
        print(f"{name}: {first:.1f} → {last:.1f} MiB ({last / first - 1:+.1%})")
    print(f"event loop lag: p50 ≤ {1000 * p50_s:g} ms, p99 ≤ {1000 * p99_s:g} ms (bar {1000 * LAG_BAR_S:g} ms)")
    print(dict(front.outcomes))
    if arguments.output:
        content = {
            "minutes": arguments.minutes,
            "places": arguments.places,
            "memory_mib": {name: {"first": first, "last": last} for name, (first, last) in grown.items()},
            "lag_s": {"p50": p50_s, "p99": p99_s},
            "outcomes": dict(front.outcomes),
            "samples": front.samples,
        }
        write(arguments.output, "front_door", content)
    if arguments.plot:
        lines = [Line(name, [(at / 60, seen[name]) for at, seen in front.samples if name in seen]) for name in grown]
        arguments.plot.write_text(line_plot("The front door while all come and go", "minutes", "resident MiB", lines))
    first, last = grown["gateway"]
    if abs(last / first - 1) > FLAT or p99_s > LAG_BAR_S:
        sys.exit(1)


if __name__ == "__main__":
    main()
