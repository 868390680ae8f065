"""A gateway that goes by its callers' addresses: real ports, a scheduler and workers as thin as their contracts allow."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import grpc.aio
import prometheus_client
import pytest

from gateway.__main__ import serve
from gateway.config import GatewaySettings
from gateway.refusals import RegionUnserved
from gateway.regions import HEADER
from gateway.whereabouts import FORWARDED
from runtime.errors import FailedPrecondition, InvalidArgument, PenstockError
from runtime.identity import Authority, Role
from runtime.status import error_of
from tests.integration.test_gateway_mesh import Member, MeshUnderTest, Scheduler, etcd, mesh_under_test
from tests.support.etcd import EtcdServer
from tests.support.waiting import eventually

__all__ = ["etcd"]
HERE_IS_ASIA = {"caller_region": "address", "region_overrides": "127.0.0.0/8=asia", "allow_region_header": True}


async def two_regions(mesh: MeshUnderTest) -> tuple[Member, Member]:
    near, far = await mesh.worker("w1"), await mesh.worker("w2")
    told = [near.presence("m"), far.presence("m")]
    told[1].region = "asia"
    await mesh.scheduler.tell(*told)
    return near, far


def requests_by_region(scheduler: Scheduler) -> Counter[str]:
    found: Counter[str] = Counter()
    for report in scheduler.reports:
        found[report.region] += sum(each.requests for each in report.models)
    return found


async def test_callers_are_served_where_they_are_and_counted_there(
    tmp_path: Path, etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mesh_under_test(tmp_path, etcd, monkeypatch, more=HERE_IS_ASIA) as mesh:
        near, far = await two_regions(mesh)
        for _ in range(3):
            await mesh.infer()
        await mesh.infer(headers={FORWARDED: "10.0.0.1"})  # nobody is believed that on the edge port
        assert (near.engine.calls, far.engine.calls) == (0, 4)
        await mesh.infer(headers={HEADER: "local"})
        assert (near.engine.calls, far.engine.calls) == (1, 4)
        await eventually(lambda: requests_by_region(mesh.scheduler) == {"asia": 4, "local": 1})
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await mesh.infer(headers={HEADER: "africa"})
        assert isinstance(error_of(refused.value), RegionUnserved)


async def test_a_region_without_workers_is_served_at_home(
    tmp_path: Path, etcd: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mesh_under_test(tmp_path, etcd, monkeypatch, more=HERE_IS_ASIA) as mesh:
        near, far = await two_regions(mesh)
        await mesh.infer()
        await mesh.scheduler.tell(near.presence("m"))
        async with asyncio.timeout(10):
            while not near.engine.calls:
                await mesh.infer()
        assert far.engine.calls


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"caller_region": "address"}, "--caller-region address has nothing to look callers up in"),
        ({"caller_region": "address", "region_overrides": "asia"}, "--region-overrides: 'asia' names no region"),
        (
            {"caller_region": "address", "geolocation_database": "/nowhere.mmdb"},
            "cannot read the geolocation file /nowhere.mmdb",
        ),
        ({"region": "auto"}, "--region auto has nothing to look an address up in"),
    ],
)
async def test_a_gateway_that_could_not_tell_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], sentence: str
) -> None:
    monkeypatch.setattr(prometheus_client, "REGISTRY", prometheus_client.CollectorRegistry())
    Authority.open(tmp_path / "ca").enrol(tmp_path / "gateway", Role.GATEWAY)
    common: dict[str, Any] = {
        "identity_dir": tmp_path / "gateway",
        "registry_address": "127.0.0.1:1",
        "scheduler_address": "127.0.0.1:1",
    }
    with pytest.raises(PenstockError) as refused:
        await serve(GatewaySettings(**common, edge_port=0, **settings), asyncio.Event())
    assert isinstance(refused.value, FailedPrecondition | InvalidArgument)
    assert sentence in refused.value.message
