"""The registry as a process: it says where it answers, stops in order, and what keeps it from starting is one clear line."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from penstock.registry.v1 import accounts_pb2, accounts_pb2_grpc

from registry.__main__ import STRANGERS_RPCS
from registry.accounts.servicer import SERVICE as ACCOUNTS
from registry.services import SERVICES
from runtime.channel import inner_channel
from runtime.identity import NodeIdentity, Role, server_name
from tests.support.etcd import EtcdServer
from tests.support.registry import Ground, registry_process


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    server = EtcdServer(tmp_path_factory.mktemp("etcd"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def shared(tmp_path: Path, etcd: EtcdServer) -> Ground:
    (tmp_path / "trusted").write_text("# nobody yet\n")
    return Ground(
        database=str(tmp_path / "registry.db"),
        objects=str(tmp_path / "objects"),
        etcd=etcd.endpoint,
        master_keys=tmp_path / "master.keys",
        trusted_signers=tmp_path / "trusted",
        environment={},
    )


async def test_it_announces_itself_answers_and_stops_in_order(
    tmp_path: Path, identities: dict[Role, NodeIdentity], shared: Ground
) -> None:
    more = ("--metrics-port", "0", "--public-port", "0", "--bootstrap-key-file", str(tmp_path / "admin.key"))
    async with registry_process(tmp_path, "one", identities[Role.REGISTRY].folder, shared, *more) as running:
        assert json.loads((tmp_path / "one.json").read_text()).keys() == {"port", "public_port", "metrics_port"}
        async with inner_channel(running.address, identities[Role.OPERATOR], Role.REGISTRY) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            assert set(SERVICES) <= await _listed(channel)
            secret = (tmp_path / "admin.key").read_text().strip()
            request = accounts_pb2.ResolveKeyRequest(secret_sha256=hashlib.sha256(secret.encode()).digest())
            resolved = await accounts_pb2_grpc.AccountServiceStub(channel).ResolveKey(request)
            assert (resolved.key.tenant, resolved.key.role) == ("default", "owner")
        assert await running.stop() == 0
        written = running.log.read_text()
    assert secret not in written
    assert secret.rsplit("-", 1)[1] not in written
    assert (tmp_path / "master.keys").read_text().strip().split(":")[1] not in written
    assert str(running.port) in written


async def test_a_restart_makes_no_second_key_and_needs_its_master_keys(
    tmp_path: Path, identities: dict[Role, NodeIdentity], shared: Ground
) -> None:
    identity, key = identities[Role.REGISTRY].folder, tmp_path / "admin.key"
    async with registry_process(tmp_path, "one", identity, shared, "--bootstrap-key-file", str(key)) as running:
        first = key.read_bytes()
        await running.kill()
    async with registry_process(tmp_path, "one", identity, shared, "--bootstrap-key-file", str(key)):
        assert key.read_bytes() == first
    shared.master_keys.rename(tmp_path / "elsewhere")
    with pytest.raises(AssertionError, match="its master keys are not in"):
        async with registry_process(tmp_path, "one", identity, shared):
            pass


async def test_what_keeps_it_from_starting_is_one_clear_line(
    tmp_path: Path, identities: dict[Role, NodeIdentity], shared: Ground
) -> None:
    shared.trusted_signers.write_text("no key\n")
    with pytest.raises(AssertionError):
        async with registry_process(tmp_path, "one", identities[Role.REGISTRY].folder, shared):
            pass
    (line,) = [line for line in (tmp_path / "one.log").read_text().splitlines() if not line.startswith("{")]
    assert line.startswith("penstock: cannot read the trusted signers")
    assert not (tmp_path / "one.json").exists()


async def test_a_signal_ends_it_while_etcd_is_away(
    tmp_path: Path, identities: dict[Role, NodeIdentity], shared: Ground
) -> None:
    alone = replace(shared, etcd="127.0.0.1:1")
    async with registry_process(tmp_path, "one", identities[Role.REGISTRY].folder, alone) as running:
        async with asyncio.timeout(20):
            running.process.send_signal(signal.SIGTERM)
            assert await running.process.wait() == 0


async def test_strangers_who_hold_every_call_they_may_keep_no_node_out(
    tmp_path: Path, identities: dict[Role, NodeIdentity], shared: Ground
) -> None:
    async with registry_process(tmp_path, "one", identities[Role.REGISTRY].folder, shared, "--public-port", "0") as running:
        public_port = json.loads((tmp_path / "one.json").read_text())["public_port"]
        believed = grpc.ssl_channel_credentials(identities[Role.OPERATOR].authority_pem)
        options = [("grpc.ssl_target_name_override", server_name(Role.REGISTRY))]
        async with grpc.aio.secure_channel(f"127.0.0.1:{public_port}", believed, options=options) as channel:
            begin: Any = channel.stream_unary(f"/{ACCOUNTS}/WhoAmI")
            held = []
            async with asyncio.timeout(60):
                while await _answered(channel) is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    # Called, and never sent anything. Some may fail for reasons of their own: until there are enough.
                    held += [begin() for _ in range(STRANGERS_RPCS // 4)]
            async with inner_channel(running.address, identities[Role.OPERATOR], Role.REGISTRY) as inner:
                assert await _answered(inner) is grpc.StatusCode.OK
            for call in held:
                call.cancel()


async def _answered(channel: grpc.aio.Channel) -> grpc.StatusCode:
    try:
        await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
    except grpc.aio.AioRpcError as failure:
        return failure.code()
    return grpc.StatusCode.OK


async def _listed(channel: grpc.aio.Channel) -> set[str]:
    ask = reflection_pb2.ServerReflectionRequest(list_services="")
    listing = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([ask]))
    return {service.name for service in (await listing.read()).list_services_response.service}
