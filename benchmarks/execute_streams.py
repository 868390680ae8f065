"""What the inner hop costs, and which gather rule costs least: client → gateway-like process → worker-like process.

Each variant is a gateway process (unary edge, WorkerLink) and a worker process (Execution over a pretended engine); all are
started first and then driven in turn by one client, round by round, so that a busy machine disturbs all alike. Printed: CPU
of each process per request, in µs, request frames per message, p50 and p99. `bare` answers with the same engine in one process.

    python benchmarks/execute_streams.py [--rounds 5] [--requests 3000] [--variants mtls:peak-3ms,...]
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "gen")]

import grpc  # noqa: E402
import grpc.aio  # noqa: E402
import psutil  # noqa: E402
import uvloop  # noqa: E402

from benchmarks.gather_rules import RULES  # noqa: E402
from gateway.links.link import WorkerLink  # noqa: E402
from gateway.links.types import CallContext as LinkCall  # noqa: E402
from gateway.links.types import LinkSettings  # noqa: E402
from runtime.channel import channel_options  # noqa: E402
from runtime.gathering import GatherRule  # noqa: E402
from runtime.identity import Authority, Role, load_identity  # noqa: E402
from runtime.ids import WorkerId  # noqa: E402
from runtime.serving import Listen, serving  # noqa: E402
from worker.execute.execution import SERVICE, Execution  # noqa: E402
from worker.types import CallContext, Load  # noqa: E402

ENGINE_FIXED_US = 150
ENGINE_ROW_US = 15
"""The pretended engine's time for a batch: a small CNN's, about. Spent hashing, without the interpreter's lock."""


class Counting:
    """A rule that counts the messages written under it."""

    messages = 0

    def __init__(self, rule: GatherRule) -> None:
        self._rule = rule
        self.hold_s, self.answered, self.came = rule.hold_s, rule.answered, rule.came

    def wrote(self) -> None:
        Counting.messages += 1
        self._rule.wrote()


@dataclass
class BatchingEngine:
    """Takes what waits as one batch; a dedicated thread, one callback per batch. `inline`: answers on the loop at once."""

    inline: bool
    fixed_blocks: int
    row_blocks: int
    waiting: deque[tuple[bytes, asyncio.Future[bytes]]] = field(default_factory=deque)
    wake: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        self.loop = asyncio.get_running_loop()
        threading.Thread(target=self._run, daemon=True).start()

    async def infer(self, model: str, version: str, payload: bytes, call: CallContext) -> bytes:
        if self.inline:
            return payload
        future: asyncio.Future[bytes] = self.loop.create_future()
        self.waiting.append((payload, future))
        self.wake.set()
        return await future

    def stream_infer(self, model: str, version: str, payload: bytes, call: CallContext) -> AsyncIterator[bytes]:
        raise NotImplementedError

    generate = stream_infer

    @property
    def load(self) -> Load:
        return Load(len(self.waiting), len(self.waiting))

    def _run(self) -> None:
        while True:
            self.wake.wait()
            self.wake.clear()
            while self.waiting:
                batch = [self.waiting.popleft() for _ in range(min(32, len(self.waiting)))]
                work(self.fixed_blocks + self.row_blocks * len(batch))
                self.loop.call_soon_threadsafe(_resolve, batch)


def _resolve(batch: list[tuple[bytes, asyncio.Future[bytes]]]) -> None:
    for payload, future in batch:
        if not future.done():
            future.set_result(payload)


_BLOCK = b"\0" * 4096


def work(blocks: int) -> None:
    digest = hashlib.sha256()
    for _ in range(blocks):
        digest.update(_BLOCK)


def blocks_per_us() -> float:
    best = min(_timed(2000) for _ in range(5))
    return 2000 / best


def _timed(blocks: int) -> float:
    began = time.perf_counter()
    work(blocks)
    return (time.perf_counter() - began) * 1e6


async def serve_worker(options: argparse.Namespace) -> None:
    engine = BatchingEngine(options.engine == "inline", options.fixed_blocks, options.row_blocks)
    engine.start()
    identity = load_identity(Path(options.identity)) if options.identity else None
    execution = Execution(
        engine,
        WorkerId("w"),
        asyncio.Event(),
        authorise=(lambda context, roles: None) if identity is None else _check,
        rule=lambda: Counting(RULES[options.rule]()),
    )
    async with serving([Listen("127.0.0.1", 0, identity)], [execution.register, _stats], [SERVICE]) as running:
        await _announce(running.ports[0])


def _check(context: Any, roles: tuple[Role, ...]) -> object:
    from runtime.serving import inner_peer

    return inner_peer(context, *roles)


async def serve_gateway(options: argparse.Namespace) -> None:
    address = f"127.0.0.1:{options.worker_port}"
    identity = load_identity(Path(options.identity)) if options.identity else None
    worker_id = WorkerId(options.worker_id)
    plain = None if identity else (lambda: grpc.aio.insecure_channel(address, options=channel_options(64 * 1024 * 1024)))
    link = WorkerLink(
        address,
        identity,  # type: ignore[arg-type]
        worker_id,
        settings=LinkSettings(streams=options.streams),
        open_channel=plain,
        rule=lambda: Counting(RULES[options.rule]()),
    )

    async def infer(payload: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        return await link.call("digits", "1", payload, LinkCall(request_id="0123456789abcdef", tenant="acme", deadline_s=None))

    async with link, serving([Listen("127.0.0.1", 0)], [_edge(infer), _stats], []) as running:
        if not await link.wait_connected(10):
            raise SystemExit("the gateway did not reach its worker")
        await _announce(running.ports[0])


async def serve_bare(options: argparse.Namespace) -> None:
    async def infer(payload: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        if options.engine != "inline":
            work(options.fixed_blocks + options.row_blocks)
        return payload

    async with serving([Listen("127.0.0.1", 0)], [_edge(infer), _stats], []) as running:
        await _announce(running.ports[0])


def _edge(infer: Any) -> Callable[[grpc.aio.Server], None]:
    return _handlers("bench.Edge", {"Infer": grpc.unary_unary_rpc_method_handler(infer)})


def _stats(server: grpc.aio.Server) -> None:
    async def stats(_: bytes, __: Any) -> bytes:
        return str(Counting.messages).encode()

    _handlers("bench.Stats", {"Messages": grpc.unary_unary_rpc_method_handler(stats)})(server)


def _handlers(service: str, handlers: dict[str, grpc.RpcMethodHandler[Any, Any]]) -> Callable[[grpc.aio.Server], None]:
    return lambda server: server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))


async def _announce(port: int) -> None:
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)  # until the parent goes


@dataclass
class Slice:
    gateway_us: float
    worker_us: float
    latencies_ms: list[float]
    frames_per_message: float
    answers_per_message: float
    wall_s: float


@dataclass
class Variant:
    """One pair of processes (or one, for bare) and what was measured on it."""

    name: str
    processes: list[psutil.Process]
    edge: grpc.aio.Channel
    worker: grpc.aio.Channel | None
    slices: dict[str, list[Slice]] = field(default_factory=dict)

    async def drive(self, level: str, requests: int) -> None:
        infer: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self.edge.unary_unary("/bench.Edge/Infer")
        payload = b"p" * 256
        latencies: list[float] = []

        async def one() -> None:
            began = time.perf_counter()
            await infer(payload)
            latencies.append((time.perf_counter() - began) * 1000)

        await asyncio.gather(*(infer(payload) for _ in range(16)))
        messages, answers = await self._messages(self.edge), await self._messages(self.worker)
        before, began = [_cpu_s(process) for process in self.processes], time.perf_counter()
        if level.endswith("/s"):
            await _open_loop(one, requests, float(level.removesuffix("/s")))
        else:
            await _closed_loop(one, requests, int(level))
        wall_s = time.perf_counter() - began
        spent = [(_cpu_s(process) - was) / requests * 1e6 for process, was in zip(self.processes, before, strict=True)]
        messages, answers = await self._messages(self.edge) - messages, await self._messages(self.worker) - answers
        self.slices.setdefault(level, []).append(
            Slice(
                spent[0],
                spent[1] if len(spent) > 1 else 0.0,
                latencies,
                requests / max(1, messages),
                requests / max(1, answers),
                wall_s,
            )
        )

    async def _messages(self, channel: grpc.aio.Channel | None) -> int:
        if channel is None:
            return 0
        ask: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/bench.Stats/Messages")
        return int(await ask(b""))


async def _closed_loop(one: Callable[[], Awaitable[None]], requests: int, in_flight: int) -> None:
    left = requests

    async def caller() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await one()

    await asyncio.gather(*(caller() for _ in range(in_flight)))


async def _open_loop(one: Callable[[], Coroutine[Any, Any, None]], requests: int, per_s: float) -> None:
    """Requests come at random times, whether or not earlier ones were answered; the same times for every variant."""
    gaps, due = random.Random(7), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(requests):
            due += gaps.expovariate(per_s)
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            group.create_task(one())


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def parse_variant(name: str) -> tuple[str, str, str, str, int]:
    """tls:gateway rule[/worker rule][*streams]@engine"""
    rest, _, engine = name.partition("@")
    tls, _, rules = rest.partition(":")
    rules, _, streams = rules.partition("*")
    gateway_rule, _, worker_rule = rules.partition("/")
    return tls, gateway_rule, worker_rule or "at-once", engine or "batched", int(streams or 1)


class Fleet:
    """The child processes; each ends when its standard input closes."""

    def __init__(self, folder: Path, blocks: tuple[int, int], cores: str) -> None:
        authority = Authority.open(folder)
        self.worker = authority.enrol(folder / "worker", Role.WORKER)
        self.gateway = authority.enrol(folder / "gateway", Role.GATEWAY)
        self.blocks = blocks
        self.children: list[subprocess.Popen[str]] = []

    def start(self, name: str) -> Variant:
        if name.startswith("bare"):
            engine = name.partition("@")[2] or "batched"
            process, port = self._child("bare", "--engine", engine)
            return Variant(name, [process], _channel(port), None)
        tls, gateway_rule, worker_rule, engine, streams = parse_variant(name)
        of_worker = ["--identity", str(self.worker.folder)] if tls == "mtls" else []
        of_gateway = ["--identity", str(self.gateway.folder), "--worker-id", self.worker.node_id] if tls == "mtls" else []
        worker, worker_port = self._child("worker", "--rule", worker_rule, "--engine", engine, *of_worker)
        gateway, port = self._child(
            "gateway", "--rule", gateway_rule, "--worker-port", str(worker_port), "--streams", str(streams), *of_gateway
        )
        stats = self._secure(worker_port) if tls == "mtls" else _channel(worker_port)
        return Variant(name, [gateway, worker], _channel(port), stats)

    def _secure(self, port: int) -> grpc.aio.Channel:
        from runtime.channel import inner_channel

        return inner_channel(f"127.0.0.1:{port}", self.gateway, Role.WORKER)

    def _child(self, role: str, *options: str) -> tuple[psutil.Process, int]:
        blocks = ["--fixed-blocks", str(self.blocks[0]), "--row-blocks", str(self.blocks[1])]
        child = subprocess.Popen(
            [sys.executable, __file__, "--role", role, *blocks, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.children.append(child)
        if child.stdout is None:
            raise RuntimeError("no pipe")
        return psutil.Process(child.pid), int(child.stdout.readline())

    def stop(self) -> None:
        for child in reversed(self.children):
            child.terminate()
        for child in self.children:
            child.wait(10)


def _channel(port: int) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)])


async def measure(options: argparse.Namespace) -> None:
    per_us = blocks_per_us()
    blocks = (round(ENGINE_FIXED_US * per_us), round(ENGINE_ROW_US * per_us))
    levels = options.levels.split(",")
    with tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(Path(folder), blocks, "")
        try:
            variants = [fleet.start(name) for name in options.variants.split(",")]
            for number in range(options.rounds):
                for level in levels:
                    for variant in variants if number % 2 == 0 else reversed(variants):
                        await variant.drive(level, max(300, options.requests // (4 if level == "1" else 1)))
            report(variants, levels)
        finally:
            fleet.stop()


def report(variants: list[Variant], levels: list[str]) -> None:
    print("| variant | in flight | gateway µs | worker µs | both µs | frames/msg | answers/msg | req/s | p50 ms | p99 ms |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for level in levels:
        for variant in variants:
            slices = variant.slices[level]
            latencies = sorted(latency for one in slices for latency in one.latencies_ms)
            gateway = statistics.median(one.gateway_us for one in slices)
            worker = statistics.median(one.worker_us for one in slices)
            cells = [
                variant.name,
                level,
                f"{gateway:.0f}",
                f"{worker:.0f}",
                f"{gateway + worker:.0f}",
                f"{statistics.median(one.frames_per_message for one in slices):.2f}" if variant.worker else "",
                f"{statistics.median(one.answers_per_message for one in slices):.2f}" if variant.worker else "",
                f"{statistics.median(len(one.latencies_ms) / one.wall_s for one in slices):.0f}",
                f"{latencies[len(latencies) // 2]:.2f}",
                f"{latencies[int(len(latencies) * 0.99)]:.2f}",
            ]
            print("| " + " | ".join(cells) + " |")


DEFAULT = "bare,mtls:at-once,mtls:fixed-1ms,mtls:unanswered-2ms,mtls:peak-3ms,plain:peak-3ms,mtls:peak-3ms*2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--role", choices=["worker", "gateway", "bare"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--levels", default="1,8,32", help="in flight, or a rate as 400/s")
    parser.add_argument(
        "--variants", default=DEFAULT, help="tls:gateway-rule[/worker-rule][*streams][@inline], or bare[@inline]"
    )
    for name in ("rule", "engine", "identity", "worker-id"):
        parser.add_argument(f"--{name}", default="", help=argparse.SUPPRESS)
    for name in ("worker-port", "fixed-blocks", "row-blocks"):
        parser.add_argument(f"--{name}", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--streams", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    roles = {"worker": serve_worker, "gateway": serve_gateway, "bare": serve_bare, None: measure}
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(roles[options.role](options))


if __name__ == "__main__":
    main()
