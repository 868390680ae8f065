"""Several processes of one gateway: one port, one place to stop, and none that outlives another or stays dead."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import SecretStr

from gateway.config import GatewaySettings
from gateway.processes import member_settings, settings_line
from runtime.identity import Authority, Role
from tests.support.mesh import ROOT, environment, running_mesh

START_S = 60.0
STOP_S = 30.0


class Crew:
    """One `penstock gateway`, alone in the world: it serves, though nothing is behind it."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.identity = Authority.open(folder / "ca").enrol(folder / "gateway", Role.GATEWAY)
        self.ready = folder / "ready.json"
        nowhere = "127.0.0.1:1"
        command = [
            *(sys.executable, "-m", "cli", "gateway", "--identity-dir", str(self.identity.folder)),
            *("--scheduler-address", nowhere, "--registry-address", nowhere, "--etcd-endpoints", nowhere),
            *("--edge-port", "0", "--metrics-port", "0", "--ready-file", str(self.ready), *options),
        ]
        self.log = folder / "gateway.log"
        with self.log.open("wb") as sink:
            self.process = subprocess.Popen(command, stdout=sink, stderr=sink, cwd=ROOT, env=environment())

    @property
    def told(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ready.read_text())
        return found

    def members(self) -> list[psutil.Process]:
        found = psutil.Process(self.process.pid).children()
        return [each for each in found if _is_member(each)]

    async def started(self) -> Crew:
        await self.until(self.ready.exists)
        return self

    async def until(self, reached: Callable[[], object]) -> None:
        async with asyncio.timeout(START_S):
            while not reached():
                assert self.process.poll() is None, self.log.read_text()[-3000:]
                await asyncio.sleep(0.05)

    async def ended(self) -> int:
        return await asyncio.to_thread(self.process.wait, STOP_S)

    async def answers(self, channel: grpc.aio.Channel) -> bool:
        answer = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=20, wait_for_ready=True
        )
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _is_member(process: psutil.Process) -> bool:
    try:
        return "gateway.member" in process.cmdline()
    except psutil.Error:  # it has just ended
        return False


@asynccontextmanager
async def crew_of(folder: Path, *options: str) -> AsyncIterator[Crew]:
    crew = Crew(folder, *options)
    try:
        yield crew
    finally:
        if crew.process.poll() is None:
            crew.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                crew.process.wait(STOP_S)
        crew.process.kill()
        crew.process.wait()


@pytest.mark.timeout(180)
async def test_processes_share_the_edge_port_and_one_that_dies_comes_back(tmp_path: Path) -> None:
    async with crew_of(tmp_path, "--processes", "2") as crew:
        told = (await crew.started()).told
        assert len(told["processes"]) == 2
        assert {each["edge_port"] for each in told["processes"]} == {told["edge_port"]}
        assert len({each["port"] for each in told["processes"]} | {each["metrics_port"] for each in told["processes"]}) == 4
        for _ in range(8):  # a new connection each time: the kernel spreads those
            async with grpc.aio.insecure_channel(f"127.0.0.1:{told['edge_port']}") as channel:
                assert await crew.answers(channel)
        before = {each.pid for each in crew.members()}
        os.kill(min(before), signal.SIGKILL)
        await crew.until(lambda: len(crew.members()) == 2 and {each.pid for each in crew.members()} != before)
        await crew.until(lambda: crew.told["processes"] != told["processes"])
        assert crew.told["edge_port"] == told["edge_port"]
        assert "process_ended" in crew.log.read_text()
        children = crew.members()
        crew.process.send_signal(signal.SIGTERM)
        assert await crew.ended() == 0, crew.log.read_text()[-3000:]
        _, alive = await asyncio.to_thread(psutil.wait_procs, children, timeout=STOP_S)
        assert not alive


@pytest.mark.timeout(180)
async def test_no_process_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    async with crew_of(tmp_path, "--processes", "2") as crew:
        await crew.started()
        children = crew.members()
        assert len(children) == 2
        crew.process.kill()
        _, alive = await asyncio.to_thread(psutil.wait_procs, children, timeout=STOP_S)
        assert not alive


@pytest.mark.timeout(180)
async def test_a_shared_port_speaks_tls_too(tmp_path: Path) -> None:
    files = Authority.open(tmp_path / "ca").enrol(tmp_path / "public", Role.GATEWAY).files
    options = ("--edge-certificate", str(files.certificate), "--edge-key", str(files.key))
    async with crew_of(tmp_path, "--processes", "2", *options) as crew:
        port = (await crew.started()).told["edge_port"]
        trusted = grpc.ssl_channel_credentials(files.authority.read_bytes())
        for _ in range(4):
            async with grpc.aio.secure_channel(f"localhost:{port}", trusted) as channel:
                assert await crew.answers(channel)


@pytest.mark.timeout(240)
def test_a_mesh_with_two_gateways_answers_through_both_doors(tmp_path: Path) -> None:
    with running_mesh(tmp_path / "data", "--gateways", "2", "--workers", "1") as running:
        told = json.loads((running.data / "run" / "gateway.json").read_text())
        assert len(told["processes"]) == 2
        image = str(ROOT / "examples" / "digits" / "7.png")
        for _ in range(4):
            assert running.penstock("chat", "sums", "12+34").stdout.strip() == "12 + 34 = 46"
            assert running.penstock("infer", "digits", "--image", image).returncode == 0


async def test_a_port_that_is_taken_is_said_in_one_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # also by somebody who shares
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        async with crew_of(tmp_path, "--processes", "2", "--edge-port", port) as crew:
            assert await crew.ended() == 1
    assert f"penstock: cannot listen on 127.0.0.1:{port}" in crew.log.read_text()


@pytest.mark.timeout(180)
async def test_what_keeps_a_process_from_starting_ends_all(tmp_path: Path) -> None:
    async with crew_of(tmp_path, "--processes", "2", "--edge-certificate", str(tmp_path / "none.pem")) as crew:
        assert await crew.ended() == 1
    said = crew.log.read_text()
    assert "penstock: --edge-certificate and --edge-key go together" in said
    assert "ended with status 1 before it served" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("number", "changes", "wanted"),
    [
        (0, {}, {"port": 0, "metrics_port": None, "advertise": ""}),
        (2, {"port": 7000, "metrics_port": 9000}, {"port": 7002, "metrics_port": 9002}),
        (1, {"metrics_port": 0}, {"port": 0, "metrics_port": 0}),
        (1, {"advertise": "10.0.0.1:7000"}, {"advertise": "10.0.0.1:7001"}),
        (1, {"advertise": "[2001:db8::1]:7000"}, {"advertise": "[2001:db8::1]:7001"}),
        (1, {"advertise": "somewhere"}, {"advertise": "somewhere"}),
    ],
)
def test_ports_count_up_where_they_were_named(number: int, changes: dict[str, Any], wanted: dict[str, Any]) -> None:
    nowhere = "127.0.0.1:1"
    settings = GatewaySettings(
        identity_dir=Path("/x"),
        scheduler_address=nowhere,
        registry_address=nowhere,
        processes=4,
        ready_file=Path("/r"),
        **changes,
    )
    member = member_settings(settings, number, 8001)
    assert {name: getattr(member, name) for name in wanted} == wanted
    assert (member.edge_port, member.processes, member.ready_file) == (8001, 1, None)
    assert GatewaySettings.model_validate_json(settings_line(member)) == member


def test_secrets_reach_the_processes_as_they_are() -> None:
    nowhere = "127.0.0.1:1"
    secret = [name for name, field in GatewaySettings.model_fields.items() if field.annotation is SecretStr]
    assert secret
    changes: dict[str, Any] = {**dict.fromkeys(secret, "health:key=value"), "cors_origins": ("https://app.example",)}
    settings = GatewaySettings(identity_dir=Path("/x"), scheduler_address=nowhere, registry_address=nowhere, **changes)
    assert GatewaySettings.model_validate_json(settings_line(settings)) == settings
