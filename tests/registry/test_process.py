"""The registry as a process: it says where it answers, stops in order, and a kill leaves nothing half visible."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from penstock.registry.v1 import accounts_pb2, accounts_pb2_grpc, models_pb2, models_pb2_grpc

from registry.keys import secret_sha256
from runtime.channel import inner_channel
from runtime.identity import NodeIdentity, Role
from tests.registry.mesh import CONTENT, as_stream, fetch, sha256_of, until, upload_messages

SHA256 = sha256_of(CONTENT)


@dataclass(slots=True)
class Running:
    process: asyncio.subprocess.Process
    channel: grpc.aio.Channel
    ports: dict[str, int]

    @property
    def models(self) -> models_pb2_grpc.ModelServiceStub:
        return models_pb2_grpc.ModelServiceStub(self.channel)

    async def ended(self, number: signal.Signals) -> tuple[int, str]:
        """End it by this signal; its exit status and what it wrote."""
        self.process.send_signal(number)
        output, errors = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, (output + errors).decode()


def arguments(folder: Path, identity_dir: Path) -> list[str]:
    (folder / "trusted").write_text("# nobody yet\n")
    return [
        *("--identity-dir", str(identity_dir)),
        *("--database", str(folder / "registry.db")),
        *("--objects-dir", str(folder / "objects")),
        *("--trusted-signers", str(folder / "trusted")),
        *("--bootstrap-key-file", str(folder / "admin.key")),
        *("--ready-file", str(folder / "ready.json")),
    ]


async def started(*args: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "registry", *args),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@asynccontextmanager
async def registry_process(folder: Path, identities: dict[Role, NodeIdentity], *more: str) -> AsyncIterator[Running]:
    ready = folder / "ready.json"
    ready.unlink(missing_ok=True)
    process = await started(*arguments(folder, identities[Role.REGISTRY].folder), *more)
    try:

        async def is_ready() -> bool:
            assert process.returncode is None, await process.communicate()
            return ready.exists()

        await until(is_ready)
        ports = json.loads(ready.read_text())
        async with inner_channel(f"127.0.0.1:{ports['port']}", identities[Role.OPERATOR], Role.REGISTRY) as channel:
            yield Running(process, channel, ports)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_it_announces_itself_answers_and_stops_in_order(tmp_path: Path, identities: dict[Role, NodeIdentity]) -> None:
    async with registry_process(tmp_path, identities, "--metrics-port", "0") as running:
        assert running.ports.keys() == {"port", "metrics_port"}
        answer = await health_pb2_grpc.HealthStub(running.channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        ask = reflection_pb2.ServerReflectionRequest(list_services="")
        listing = reflection_pb2_grpc.ServerReflectionStub(running.channel).ServerReflectionInfo(iter([ask]))
        names = {service.name for service in (await listing.read()).list_services_response.service}
        assert {"penstock.registry.v1.ModelService", "penstock.registry.v1.AccountService"} <= names
        secret = (tmp_path / "admin.key").read_text().strip()
        accounts = accounts_pb2_grpc.AccountServiceStub(running.channel)
        resolved = await accounts.ResolveKey(accounts_pb2.ResolveKeyRequest(secret_sha256=secret_sha256(secret)))
        assert (resolved.key.tenant, resolved.key.role) == ("default", "admin")
        watch = accounts.WatchKeys(accounts_pb2.WatchKeysRequest())
        await watch.read()
        async with asyncio.timeout(8):  # less than the grace: a standing watch holds nothing up
            status, output = await running.ended(signal.SIGTERM)
    assert status == 0
    assert secret not in output
    assert secret.rsplit("-", 1)[1] not in output
    assert str(running.ports["port"]) in output


async def test_a_kill_in_the_middle_of_an_upload_leaves_no_half_file_visible(
    tmp_path: Path, identities: dict[Role, NodeIdentity]
) -> None:
    ask = models_pb2.StatFileRequest(sha256=SHA256)
    async with registry_process(tmp_path, identities) as running:
        first = (tmp_path / "admin.key").read_bytes()
        call = running.models.UploadFile()
        for message in list(upload_messages(CONTENT))[:4]:
            await call.write(message)

        async def arrived() -> bool:
            return (await running.models.StatFile(ask)).received_bytes == 900_000

        await until(arrived)
        assert (await running.ended(signal.SIGKILL))[0] == -signal.SIGKILL
        with pytest.raises(grpc.aio.AioRpcError):
            await call
    assert not [file for file in (tmp_path / "objects" / "objects").rglob("*") if file.is_file()]
    async with registry_process(tmp_path, identities) as running:
        assert await running.models.StatFile(ask) == models_pb2.StatFileResponse(received_bytes=900_000)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await fetch(running.models, SHA256)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
        answer = await running.models.UploadFile(as_stream(upload_messages(CONTENT, offset_bytes=900_000)))
        assert answer.complete
        assert await fetch(running.models, SHA256) == CONTENT
        assert (tmp_path / "admin.key").read_bytes() == first, "a restart makes no second key"


async def test_what_keeps_it_from_starting_is_one_clear_line(tmp_path: Path, identities: dict[Role, NodeIdentity]) -> None:
    args = arguments(tmp_path, identities[Role.REGISTRY].folder)
    (tmp_path / "trusted").write_text("no key\n")
    process = await started(*args)
    output, errors = await process.communicate()
    assert process.returncode == 1
    assert output == b""
    (line,) = [line for line in errors.decode().splitlines() if not line.startswith("{")]
    assert line.startswith("penstock: cannot read the trusted signers")
    assert not (tmp_path / "ready.json").exists()
