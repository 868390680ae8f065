"""What stands between Envoy and the gateway's own work: grpc.aio behind the transcoder, and HTTP/1.1 by aiohttp and by hand.

All servers answer the same bodies with no work at all: one whole JSON answer, or 21 events written one by one. Each is behind
the same Envoy with the mutual TLS of an inner hop, loaded in turn. CPU is user + system time of the server's process, and of
Envoy's, for each request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
import uvloop
from aiohttp import web
from google.api.httpbody_pb2 import HttpBody
from rich.console import Console
from rich.table import Table

from benchmarks.gateways.mock_upstream import CHUNKS, Connection
from benchmarks.serving import ROOT, child
from gateway.xds.envoy import EnvoyProcess, envoy_command, find_envoy
from runtime.identity import Authority, NodeIdentity, Role, load_identity

WHOLE = b'{"id":"chatcmpl-0","choices":[{"index":0,"message":{"role":"assistant","content":"' + b"word " * CHUNKS + b'"}}]}'
EVENT = b'data: {"id":"chatcmpl-0","choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
SERVICE = "penstock.gateway.v1.OpenAIService"


async def serve_grpc(ready: Path, identity: NodeIdentity) -> None:
    async def answer(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        asked = HttpBody.FromString(request)
        if b'"stream": true' in asked.data:
            for _ in range(CHUNKS):
                await context.write(HttpBody(content_type="text/event-stream", data=EVENT).SerializeToString())
                await asyncio.sleep(0)
        await context.write(HttpBody(content_type="application/json", data=WHOLE).SerializeToString())

    server = grpc.aio.server()
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "CreateChatCompletion": grpc.unary_stream_rpc_method_handler(answer)
    }
    server.add_registered_method_handlers(SERVICE, handlers)
    pair = (identity.tls_key_pem, identity.certificate_pem)
    credentials = grpc.ssl_server_credentials([pair], identity.authority_pem, require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    told(ready, port)
    await server.wait_for_termination()


def server_context(identity: NodeIdentity) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(identity.files.authority)
    context.load_cert_chain(identity.files.certificate, identity.files.key)
    return context


async def serve_http(ready: Path, identity: NodeIdentity) -> None:
    loop, context = asyncio.get_running_loop(), server_context(identity)
    server = await loop.create_server(lambda: Connection(0.0), "127.0.0.1", 0, backlog=4096, ssl=context)
    told(ready, server.sockets[0].getsockname()[1])
    await server.serve_forever()


async def serve_aiohttp(ready: Path, identity: NodeIdentity) -> None:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        if b'"stream": true' not in await request.read():
            return web.Response(body=WHOLE, content_type="application/json")
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(CHUNKS):
            await response.write(EVENT)
            await asyncio.sleep(0)
        await response.write_eof(EVENT)
        return response

    loop = asyncio.get_running_loop()
    handler = web.Server(answer, access_log=None)
    server = await loop.create_server(handler, "127.0.0.1", 0, backlog=4096, ssl=server_context(identity))
    told(ready, server.sockets[0].getsockname()[1])
    await server.serve_forever()


def told(ready: Path, port: int) -> None:
    draft = ready.with_suffix(".draft")
    draft.write_text(json.dumps({"port": port}))
    draft.rename(ready)


def _typed(name: str, **fields: Any) -> dict[str, Any]:
    return {"@type": f"type.googleapis.com/envoy.extensions.{name}", **fields}


def _listener(name: str, port: int, filters: list[dict[str, Any]]) -> dict[str, Any]:
    router = {"name": "router", "typed_config": _typed("filters.http.router.v3.Router")}
    routes = {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [_route(name)]}]}
    manager = _typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=name,
        route_config=routes,
        http_filters=[*filters, router],
    )
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    return {"name": name, "address": _socket(port), "filter_chains": [chain]}


def _route(cluster: str) -> dict[str, Any]:
    return {"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}}


def _socket(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _cluster(name: str, port: int, envoy: NodeIdentity, *, http2: bool) -> dict[str, Any]:
    protocol: dict[str, Any] = {"http2_protocol_options": {}} if http2 else {"http_protocol_options": {}}
    options = _typed("upstreams.http.v3.HttpProtocolOptions", explicit_http_config=protocol)
    endpoint = {"lb_endpoints": [{"endpoint": {"address": _socket(port)}}]}
    shown = {"certificate_chain": _file(envoy.files.certificate), "private_key": _file(envoy.files.key)}
    common = {"tls_certificates": [shown], "validation_context": {"trusted_ca": _file(envoy.files.authority)}}
    common |= {"alpn_protocols": ["h2" if http2 else "http/1.1"]}
    tls = _typed("transport_sockets.tls.v3.UpstreamTlsContext", common_tls_context=common)
    return {
        "name": name,
        "type": "STATIC",
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
        "load_assignment": {"cluster_name": name, "endpoints": [endpoint]},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
    }


def _file(path: Path) -> dict[str, str]:
    return {"filename": str(path)}


def bootstrap(ports: dict[str, int], listening: dict[str, int], envoy: NodeIdentity) -> dict[str, Any]:
    transcoder = _typed(
        "filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder",
        proto_descriptor=str(ROOT / "gen" / "penstock.binpb"),
        services=[SERVICE],
    )
    filters = [{"name": "transcoder", "typed_config": transcoder}]
    listeners = [_listener(kind, listening[kind], filters if kind == "grpc" else []) for kind in ports]
    clusters = [_cluster(kind, ports[kind], envoy, http2=kind == "grpc") for kind in ports]
    return {"static_resources": {"listeners": listeners, "clusters": clusters}}


@dataclass(frozen=True, slots=True)
class Sample:
    server: str
    stream: bool
    in_flight: int
    server_us: float
    envoy_us: float


def cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def sampled(server: str, address: str, pids: tuple[int, int], in_flight: int, duration_s: float, *, stream: bool) -> Sample:
    command = [sys.executable, "-m", "benchmarks.gateways.http_load", "--address", address, "--model", "mock"]
    command += ["--in-flight", str(in_flight), "--duration-s", str(duration_s), *(["--stream"] if stream else [])]
    before = [cpu_s(pid) for pid in pids]
    done = subprocess.run(command, capture_output=True, check=True, cwd=ROOT)
    spent = [cpu_s(pid) - began for pid, began in zip(pids, before, strict=True)]
    found = json.loads(done.stdout)
    if not found["requests"] or found["failures"]:
        raise SystemExit(f"{server}: {found}")
    return Sample(server, stream, in_flight, *(1e6 * each / found["requests"] for each in spent))


def _free_ports(count: int) -> list[int]:
    """Held together while they are chosen, so that each is another."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def compared(rounds: int, duration_s: float, in_flight: list[int]) -> list[Sample]:
    samples = []
    with tempfile.TemporaryDirectory(prefix="penstock-edge-") as name, ExitStack() as stack:
        folder, ports, pids = Path(name), dict[str, int](), dict[str, int]()
        authority = Authority.open(folder / "authority")
        identities = {role: authority.enrol(folder / role.value, role) for role in (Role.GATEWAY, Role.ENVOY)}
        for kind in SERVERS:
            ready = folder / f"{kind}.json"
            command = [sys.executable, "-m", "benchmarks.edge_hop", "--serve", kind, "--ready-file", str(ready)]
            command += ["--identity", str(folder / Role.GATEWAY.value)]
            process, announced = stack.enter_context(child(command, ready, ready.with_suffix(".log")))
            ports[kind], pids[kind] = int(str(announced["port"])), process.pid
        listening = dict(zip(ports, _free_ports(len(ports)), strict=True))
        (folder / "envoy.json").write_text(json.dumps(bootstrap(ports, listening, identities[Role.ENVOY])))
        words = envoy_command(EnvoyProcess(find_envoy(), folder / "envoy.json"))
        envoy = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=(folder / "envoy.log").open("wb"))
        stack.callback(lambda: envoy.wait(20))
        stack.callback(envoy.terminate)
        time.sleep(2)
        for number in range(rounds + 1):
            for each in in_flight:
                for stream in (False, True):
                    for kind in ports:
                        at = f"127.0.0.1:{listening[kind]}"
                        found = sampled(kind, at, (pids[kind], envoy.pid), each, duration_s, stream=stream)
                        samples += [found] if number else []
    return samples


SERVERS = {"grpc": serve_grpc, "aiohttp": serve_aiohttp, "by hand": serve_http}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", choices=SERVERS, default=None)
    parser.add_argument("--identity", type=Path, default=None)
    parser.add_argument("--ready-file", type=Path, default=None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--duration-s", type=float, default=2.0)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 8, 32])
    arguments = parser.parse_args()
    if arguments.serve:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(SERVERS[arguments.serve](arguments.ready_file, load_identity(arguments.identity)))
        return
    samples = compared(arguments.rounds, arguments.duration_s, arguments.in_flight)
    printed = Table(title="CPU µs a request, by process")
    for column in ("answer", "in flight", "server", "the server", "Envoy", "both"):
        printed.add_column(column, justify="right")
    for stream in (False, True):
        for each in arguments.in_flight:
            for kind in SERVERS:
                found = [row for row in samples if (row.server, row.stream, row.in_flight) == (kind, stream, each)]
                ours, envoys = (
                    statistics.median(values) for values in zip(*((r.server_us, r.envoy_us) for r in found), strict=True)
                )
                printed.add_row(
                    "21 events" if stream else "whole", str(each), kind, f"{ours:.0f}", f"{envoys:.0f}", f"{ours + envoys:.0f}"
                )
    Console(width=None if sys.stdout.isatty() else 120).print(printed)


if __name__ == "__main__":
    main()
