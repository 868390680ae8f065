"""The endpoint picker behind a real Envoy: ext_proc asks it, the override-host policy follows it."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
from inference import grpc_service_pb2 as kserve
from penstock.worker.v1 import worker_pb2
from xds import external_processor_pb2_grpc

from gateway.xds.envoy import find_envoy
from gateway.xds.types import Endpoint
from placement.rules import DEFAULT_ROUTE
from placement.types import Load
from runtime.clock import SystemClock
from runtime.ids import WorkerId, presence_key
from runtime.keyvalue import KeyValue
from runtime.notices import NoticeBoard
from runtime.serving import Listen, serving
from scheduler.fleet import Fleet
from scheduler.outlook import Outlook
from scheduler.picker.picking import Picker
from scheduler.picker.servicer import SERVICE, PickerServicer
from tests.scheduler.mesh import HERE, Mesh, model
from tests.support.envoy import LOOPBACK, RunningEnvoy, free_endpoint
from tests.support.waiting import eventually

INFER = "/inference.GRPCInferenceService/ModelInfer"
NAMES = ("first", "second", "third")


class Upstream(grpc.GenericRpcHandler):
    """A worker's KServe port, as far as Envoy is concerned: answers with the bytes it got, and says who it is."""

    def __init__(self, name: str) -> None:
        self._name, self.hold = name, asyncio.Event()
        self.hold.set()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        return grpc.unary_unary_rpc_method_handler(self._answer)

    async def _answer(self, request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:
        await self.hold.wait()
        await context.send_initial_metadata((("x-served-by", self._name),))
        return request


@dataclass(slots=True)
class Pool:
    """Envoy, the picker behind it, and the workers that it picks among."""

    address: str = ""
    ids: dict[str, WorkerId] = field(default_factory=dict)
    endpoints: dict[str, str] = field(default_factory=dict)
    servers: dict[str, grpc.aio.Server] = field(default_factory=dict)
    upstreams: dict[str, Upstream] = field(default_factory=dict)
    loads: dict[WorkerId, Load] = field(default_factory=dict)
    outlook: Outlook | None = None

    def in_flight(self) -> int:
        assert self.outlook is not None
        return sum(self.outlook.state.load_of(self.outlook.view, who).in_flight for who in self.ids.values())


@asynccontextmanager
async def pool(tmp_path: Path, mode: str = "FULL_DUPLEX_STREAMED", *, max_in_flight: int = 8) -> AsyncIterator[Pool]:
    """Three workers with model digits; all but the first hold nothing else."""
    clock, made = SystemClock(), Pool()
    mesh, board = Mesh(tmp_path, clock), NoticeBoard()
    async with AsyncExitStack() as stack:
        items = []
        for name in NAMES:
            made.upstreams[name] = Upstream(name)
            server = made.servers[name] = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
            server.add_generic_rpc_handlers((made.upstreams[name],))
            port = server.add_insecure_port(f"{LOOPBACK}:0")
            await server.start()
            stack.push_async_callback(server.stop, None)
            made.endpoints[name], made.ids[name] = f"{LOOPBACK}:{port}", mesh.worker_id(name)
            presence = mesh.presence(name, model(worker_pb2.MODEL_STATE_READY))
            presence.kserve_address, presence.max_in_flight = made.endpoints[name], max_in_flight
            items.append(KeyValue(presence_key(HERE, made.ids[name]), mesh.signed(name, presence), 1, 1, 1))
        fleet = Fleet(mesh.reader())
        made.outlook = outlook = Outlook(fleet, board, clock, lambda: made.loads)
        outlook.follow(fleet.replace(items, now_s=0.0, now_wall_s=clock.wall_s()))
        picker = Picker(outlook, HERE, lambda *_: DEFAULT_ROUTE)
        servicer = PickerServicer(picker, clock, random.Random(1))

        def register(server: grpc.aio.Server) -> None:
            external_processor_pb2_grpc.add_ExternalProcessorServicer_to_server(servicer, server)

        running = await stack.enter_async_context(serving([Listen(LOOPBACK, 0)], [register], [SERVICE]))
        edge = free_endpoint()
        config = tmp_path / "envoy.json"
        config.write_text(json.dumps(bootstrap(edge, running.ports[0], made.endpoints.values(), mode)))
        log = tmp_path / "envoy.log"
        with log.open("wb") as sink:
            process = await asyncio.create_subprocess_exec(
                str(find_envoy()), "-c", str(config), "--concurrency", "1", "-l", "warning", stdout=sink, stderr=sink
            )
        stack.push_async_callback(ended, process)
        await RunningEnvoy(process, log).until_listening(edge)
        made.address = f"{edge.host}:{edge.port}"
        yield made


async def ended(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    await process.wait()


def bootstrap(edge: Endpoint, picker_port: int, endpoints: Any, mode: str) -> dict[str, Any]:
    """An Envoy that asks the picker about every request, as a conformant inference gateway does."""

    def typed(kind: str, **fields: Any) -> dict[str, Any]:
        return {"@type": f"type.googleapis.com/envoy.extensions.{kind}", **fields}

    def address(at: str) -> dict[str, Any]:
        host, port = at.rsplit(":", 1)
        return {"socket_address": {"address": host, "port_value": int(port)}}

    def cluster(name: str, *at: str, **more: Any) -> dict[str, Any]:
        lb = [{"endpoint": {"address": address(each)}} for each in at]
        http2 = typed("upstreams.http.v3.HttpProtocolOptions", explicit_http_config={"http2_protocol_options": {}})
        return {
            "name": name,
            "connect_timeout": "1s",
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": lb}]},
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
            **more,
        }

    override = typed(
        "load_balancing_policies.override_host.v3.OverrideHost",
        override_host_sources=[
            {"metadata": {"key": "envoy.lb", "path": [{"key": "x-gateway-destination-endpoint"}]}},
            {"header": "x-gateway-destination-endpoint"},
        ],
        fallback_policy={
            "policies": [
                {
                    "typed_extension_config": {
                        "name": "envoy.load_balancing_policies.round_robin",
                        "typed_config": typed("load_balancing_policies.round_robin.v3.RoundRobin"),
                    }
                }
            ]
        },
    )
    processor = typed(
        "filters.http.ext_proc.v3.ExternalProcessor",
        grpc_service={"envoy_grpc": {"cluster_name": "picker"}, "timeout": "5s"},
        message_timeout="5s",
        processing_mode={
            "request_header_mode": "SEND",
            "response_header_mode": "SEND",
            "request_body_mode": mode,
            "response_body_mode": mode if mode == "FULL_DUPLEX_STREAMED" else "NONE",
            "request_trailer_mode": "SEND",
            "response_trailer_mode": "SEND",
        },
        metadata_options={"receiving_namespaces": {"untyped": ["envoy.lb"]}},
    )
    route = {
        "match": {"prefix": "/"},
        "route": {
            "cluster": "workers",
            "retry_policy": {"retry_on": "connect-failure,refused-stream", "num_retries": 2},
        },
    }
    manager = typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="edge",
        codec_type="AUTO",
        route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        http_filters=[
            {"name": "envoy.filters.http.ext_proc", "typed_config": processor},
            {"name": "envoy.filters.http.router", "typed_config": typed("filters.http.router.v3.Router")},
        ],
    )
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    policy = {
        "load_balancing_policy": {
            "policies": [
                {"typed_extension_config": {"name": "envoy.load_balancing_policies.override_host", "typed_config": override}}
            ]
        }
    }
    return {
        "static_resources": {
            "listeners": [{"address": address(f"{edge.host}:{edge.port}"), "filter_chains": [{"filters": filters}]}],
            "clusters": [cluster("picker", f"{LOOPBACK}:{picker_port}"), cluster("workers", *endpoints, **policy)],
        }
    }


def request(name: str = "digits", size: int = 64, version: str = "") -> bytes:
    message = kserve.ModelInferRequest(model_name=name, model_version=version, raw_input_contents=[bytes(size)])
    return message.SerializeToString()


def infer(channel: grpc.aio.Channel) -> grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]:
    return channel.unary_unary(INFER)


async def served(channel: grpc.aio.Channel, payload: bytes) -> str:
    """Who answered; the bytes are to come back as they were."""
    call = infer(channel)(payload, timeout=20)
    assert await call == payload
    return str(dict(await call.initial_metadata())["x-served-by"])


@pytest.mark.parametrize("mode", ["FULL_DUPLEX_STREAMED", "BUFFERED"])
async def test_the_least_loaded_worker_is_picked(tmp_path: Path, mode: str) -> None:
    async with pool(tmp_path, mode) as made, channel_to(made) as channel:
        for name in NAMES:
            made.loads = {who: Load(in_flight=6) for other, who in made.ids.items() if other != name}
            made.loads[made.ids[name]] = Load()
            await asyncio.sleep(0.25)  # loads are read anew that often
            assert {await served(channel, request()) for _ in range(4)} == {name}
        await eventually(lambda: made.in_flight() == 0)


@pytest.mark.parametrize("size", [1, 200_000, 3_000_000])
async def test_bodies_of_any_size_pass_untouched(tmp_path: Path, size: int) -> None:
    async with pool(tmp_path) as made, channel_to(made) as channel:
        assert await served(channel, request(size=size)) in NAMES
        await eventually(lambda: made.in_flight() == 0)


async def test_a_worker_that_is_gone_is_fallen_back_from(tmp_path: Path) -> None:
    async with pool(tmp_path) as made, channel_to(made) as channel:
        picked = await served(channel, request())
        await made.servers[picked].stop(None)
        others = {await served(channel, request()) for _ in range(6)}
        assert others == set(NAMES) - {picked}


async def test_full_workers_are_429_and_resource_exhausted(tmp_path: Path) -> None:
    async with pool(tmp_path, max_in_flight=1) as made, channel_to(made) as channel:
        for upstream in made.upstreams.values():
            upstream.hold.clear()
        calls = [infer(channel)(request(), timeout=20) for _ in NAMES]
        await eventually(lambda: made.in_flight() == len(NAMES))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await infer(channel)(request(), timeout=5)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        async with httpx.AsyncClient() as client:
            answer = await client.post(f"http://{made.address}/v1/chat/completions", json={"model": "digits"})
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "1"
        for upstream in made.upstreams.values():
            upstream.hold.set()
        await asyncio.gather(*calls)
        await eventually(lambda: made.in_flight() == 0)


async def test_a_caller_that_leaves_frees_its_place(tmp_path: Path) -> None:
    async with pool(tmp_path) as made, channel_to(made) as channel:
        for upstream in made.upstreams.values():
            upstream.hold.clear()
        call = infer(channel)(request())
        await eventually(lambda: made.in_flight() == 1)
        call.cancel()
        await eventually(lambda: made.in_flight() == 0)


async def test_what_cannot_be_picked_for_is_said(tmp_path: Path) -> None:
    async with (
        pool(tmp_path) as made,
        channel_to(made) as channel,
        httpx.AsyncClient(base_url=f"http://{made.address}") as http,
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="no worker holds a copy of model 'nobody'") as unknown:
            await infer(channel)(request("nobody"), timeout=5)
        assert unknown.value.code() is grpc.StatusCode.UNAVAILABLE
        rest = await http.post("/v2/models/nobody/infer", content=b"{}")
        assert rest.status_code == 503
        unnamed = await http.post("/v1/chat/completions", json={"messages": []})
        assert unnamed.status_code == 400
        assert "'model'" in unnamed.json()["error"]["message"]
        assert (await http.get("/")).status_code == 400


def http_to(made: Pool) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://{made.address}")


@asynccontextmanager
async def channel_to(made: Pool) -> AsyncIterator[grpc.aio.Channel]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(made.address, options=options) as channel:
        yield channel
