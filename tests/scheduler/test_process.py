"""The scheduler as a process of its own, over a real etcd: it starts, follows, outlives etcd, and ends when told to."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import httpx
import pytest
from penstock.scheduler.v1 import scheduler_pb2, scheduler_pb2_grpc

from runtime.channel import inner_channel
from runtime.clock import SystemClock
from runtime.etcd import EtcdStore
from runtime.etcd_members import EtcdSettings
from runtime.identity import Role
from tests.scheduler.mesh import DIGEST, HERE, Mesh, assigned, model
from tests.support.etcd import EtcdServer
from tests.support.waiting import eventually


class Running:
    def __init__(self, folder: Path, etcd: EtcdServer) -> None:
        self.mesh, self.etcd, self._folder = Mesh(folder, SystemClock()), etcd, folder
        self.ready = folder / "ready.json"
        self.mesh.node("scheduler", Role.SCHEDULER)
        command = [sys.executable, "-m", "scheduler", "--identity-dir", str(folder / "scheduler")]
        command += ["--etcd-endpoints", etcd.endpoint, "--ready-file", str(self.ready), "--region", HERE, "--metrics-port", "0"]
        path = os.pathsep.join(entry for entry in sys.path if entry)
        with (folder / "scheduler.log").open("wb") as log:
            self.process = subprocess.Popen(command, stderr=log, env={**os.environ, "PYTHONPATH": path})

    @property
    def log(self) -> str:
        return (self._folder / "scheduler.log").read_text()

    async def stub(self) -> scheduler_pb2_grpc.FleetServiceStub:
        await eventually(self.ready.exists)
        port = json.loads(self.ready.read_text())["port"]
        self.channel = inner_channel(f"127.0.0.1:{port}", self.mesh.node("cli", Role.OPERATOR), Role.SCHEDULER)
        return scheduler_pb2_grpc.FleetServiceStub(self.channel)

    async def metrics(self) -> str:
        port = json.loads(self.ready.read_text())["metrics_port"]
        async with httpx.AsyncClient() as client:
            return (await client.get(f"http://127.0.0.1:{port}/metrics")).text


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    etcd = EtcdServer(tmp_path)
    running = Running(tmp_path, etcd)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
        running.process.wait(10)
        etcd.stop()


async def test_a_life(running: Running) -> None:
    mesh, stub = running.mesh, await running.stub()
    with pytest.raises(grpc.aio.AioRpcError, match="not reached etcd yet"):
        await stub.ListWorkers(scheduler_pb2.ListWorkersRequest())
    await running.etcd.astart()
    async with EtcdStore(EtcdSettings.at(running.etcd.endpoint)) as store:
        async with store.lease(ttl_s=2) as lease:
            lease.put(mesh.key("a"), mesh.signed("a", mesh.presence("a", model())))
            watch = stub.WatchFleet(scheduler_pb2.WatchFleetRequest(), wait_for_ready=True)
            await _told(watch, lambda update: mesh.worker_id("a") in [each.worker_id for each in update.workers])
            me = mesh.node("scheduler", Role.SCHEDULER).node_id
            elsewhere = stub.WatchFleet(scheduler_pb2.WatchFleetRequest())
            await _told(elsewhere, lambda update: [each.scheduler_id for each in update.leaders.leaders] == [me])
            elsewhere.cancel()
            assert 'penstock_scheduler_leads{region="*"} 1.0' in await running.metrics()
            wish = scheduler_pb2.Placement(model="digits", version="1", digest=DIGEST, copies=1)
            await stub.PlaceModel(scheduler_pb2.PlaceModelRequest(placement=wish))
            await _told(watch, lambda update: bool(update.placements.placements))
            async with asyncio.timeout(10):
                while await assigned(store, mesh, "a") != [("digits", 1)]:
                    await asyncio.sleep(0.02)

            await running.etcd.akill()
            await _told(watch, lambda update: update.stale)
            assert len((await stub.ListWorkers(scheduler_pb2.ListWorkersRequest())).workers) == 1
            running.etcd.empty()
            await running.etcd.astart()
            await _told(watch, lambda update: not update.stale)
            async with asyncio.timeout(10):
                while await assigned(store, mesh, "a") != [("digits", 1)]:
                    await asyncio.sleep(0.02)
            assert len((await stub.ListWorkers(scheduler_pb2.ListWorkersRequest())).workers) == 1
            async with asyncio.timeout(10):  # the lease learns of its loss when it renews
                while await store.get(mesh.key("a")) is None:
                    await asyncio.sleep(0.02)
        await _told(watch, lambda update: mesh.worker_id("a") in update.removed_worker_ids)
    running.process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(running.process.wait, 10) == 0
    async with asyncio.timeout(10):
        while await watch.read() is not grpc.aio.EOF:  # it may tell that it resigned before that
            pass
    await running.channel.close()
    assert "Traceback" not in running.log


async def _told(watch: object, condition: object) -> None:
    async with asyncio.timeout(15):
        while not condition(await watch.read()):  # type: ignore[attr-defined,operator]
            pass
