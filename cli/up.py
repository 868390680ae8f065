"""`penstock up`: the whole mesh on one machine, from what pip installed; Ctrl-C stops it in order.

Owns the children's lifetimes and what a person sees of them. What runs is `cli.mesh`'s, when it is started again
`cli.supervision`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import signal
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from penstock.registry.v1 import models_pb2, models_pb2_grpc
from rich.console import Console

from cli.child import Child
from cli.demo_models import publish_demos, wait_until_ready
from cli.mesh import Mesh, MeshOptions, plan_mesh
from cli.profile import Profile
from cli.signers import NewSigner, endorse
from cli.supervision import stop_waves
from cli.welcome import ChildBoard, welcome
from runtime.errors import Code, PenstockError
from runtime.identity import NodeIdentity
from runtime.ids import DEFAULT_TENANT

_START_TIMEOUT_S = 60.0
_HOUSEKEEPING_S = 10.0


class MeshRunsAlready(PenstockError, code=Code.FAILED_PRECONDITION, reason="MESH_RUNS_ALREADY"):
    """Another `penstock up` owns the data folder."""


class MeshDidNotStart(PenstockError, code=Code.UNAVAILABLE, reason="MESH_DID_NOT_START"):
    """Some process of the mesh did not answer in time."""


async def run_up(options: MeshOptions, console: Console, *, demo: bool) -> None:
    """Run the mesh until SIGINT or SIGTERM. Raises where it cannot start; whatever was started is stopped."""
    started_s = time.monotonic()
    options.data.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _owned(options.data):
        mesh = plan_mesh(options)
        with ChildBoard(console) as board:
            children = [Child(spec, options.data.resolve() / "logs", board.update) for spec in mesh.specs]
            async with _running(children), _signals(children) as stop:
                profile = await _until(stop, _start(mesh, children, options, board, demo=demo))
                if profile is not None:
                    board.finish()
                    welcome(console, profile, options.data, demo=demo, took_s=time.monotonic() - started_s)
                    (options.data / "ready").write_text("{}")
                    await _keep_house(children, stop)
                board.say("stopping")
                (options.data / "ready").unlink(missing_ok=True)


async def _start(mesh: Mesh, children: list[Child], options: MeshOptions, board: ChildBoard, *, demo: bool) -> Profile:
    """Wait until everything answers; publish and place the demo models as soon as registry and scheduler do."""
    by_name = {child.spec.name: child for child in children}
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            await asyncio.gather(*(by_name[name].ready.wait() for name in ("registry", "scheduler", "gateway")))
            profile = replace(mesh.profile, api_key=mesh.key_file.read_text().strip())
            profile.write(options.data)
            await let_gateway_sign(profile, mesh.gateway)
            if demo:
                await publish_demos(profile, mesh.operator, copies=options.workers, say=board.say)
            await asyncio.gather(*(child.ready.wait() for child in children))
            if demo:
                await wait_until_ready(profile, say=board.say)
    except TimeoutError:
        late = ", ".join(child.spec.name for child in children if not child.ready.is_set()) or "the demo models"
        raise MeshDidNotStart(
            f"not ready after {_START_TIMEOUT_S:.0f} s: {late}; the logs are in {options.data / 'logs'}"
        ) from None
    return profile


async def let_gateway_sign(profile: Profile, gateway: NodeIdentity) -> None:
    """Of the first tenant's models: what RepositoryModelLoad brings with it is a version that the gateway signs."""
    async with profile.registry_channel() as registry:
        request = models_pb2.ListSignersRequest(tenant=DEFAULT_TENANT)
        known = (await models_pb2_grpc.ModelServiceStub(registry).ListSigners(request)).signers
    if not any(signer.signer_id == gateway.node_id for signer in known):
        await endorse(profile, NewSigner("gateway", gateway.ed25519_public_key, DEFAULT_TENANT, ("*",), days=0))


async def _until(stop: asyncio.Event, starting: Coroutine[Any, Any, Profile]) -> Profile | None:
    """The profile, or None if it was told to stop first."""
    start, stopping = asyncio.create_task(starting), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((start, stopping), return_when=asyncio.FIRST_COMPLETED)
        return await start if start.done() else None
    finally:
        for task in (start, stopping):
            task.cancel()
        await asyncio.wait((start, stopping))


async def _keep_house(children: list[Child], stop: asyncio.Event) -> None:
    while not stop.is_set():
        for child in children:
            child.trim_log()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_HOUSEKEEPING_S):
                await stop.wait()


@contextlib.asynccontextmanager
async def _running(children: list[Child]) -> AsyncIterator[None]:
    """Every child is kept running inside; leaving stops them wave by wave."""
    tasks = {child.spec.name: asyncio.create_task(child.run(), name=child.spec.name) for child in children}
    by_name = {child.spec.name: child for child in children}
    try:
        yield
    finally:
        for wave in stop_waves(list(by_name)):
            await asyncio.gather(*(by_name[name].stop() for name in wave))
            for name in wave:
                tasks[name].cancel()
        await asyncio.gather(*tasks.values(), return_exceptions=True)


@contextlib.asynccontextmanager
async def _signals(children: list[Child]) -> AsyncIterator[asyncio.Event]:
    """The first signal asks for an ordered stop; a second one ends everything at once."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            for child in children:
                child.kill()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal)
    yield stop


@contextlib.contextmanager
def _owned(data: Path) -> Iterator[None]:
    """One `up` at a time for one data folder."""
    with (data / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise MeshRunsAlready(f"another `penstock up` runs on {data}; stop it, or pass another --data") from error
        (data / "ready").unlink(missing_ok=True)
        yield
