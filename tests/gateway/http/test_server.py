"""The port for Envoy: who may connect, what is answered, what happens to what is too much, too slow or gone."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from google.api.httpbody_pb2 import HttpBody
from penstock.gateway.v1 import gateway_pb2

from gateway.http.context import HttpContext
from gateway.http.paths import Paths
from gateway.http.server import HttpDoor, HttpLimits, Identify, http_serving
from gateway.openai.errors import STATUS_HEADER, ErrorAnswer, error_answer
from runtime.errors import NotFound, PenstockError, Unauthenticated
from runtime.identity import Authority, NodeIdentity, Role
from runtime.revocations import Revocations
from runtime.serving import inner_peer

SERVICE = gateway_pb2.DESCRIPTOR.services_by_name["OpenAIService"]
LIMITS = HttpLimits(body_bytes=1000, open_requests=2)
Answer = Callable[[HttpBody, HttpContext], Awaitable[None]]


@dataclass
class Servicer:
    """Does what the test says."""

    chat: Answer | None = None
    seen: list[tuple[Any, dict[str, str]]] = field(default_factory=list)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    async def CreateChatCompletion(self, request: HttpBody, context: HttpContext) -> None:
        self.seen.append((request, dict(context.invocation_metadata())))
        assert self.chat is not None
        try:
            await self.chat(request, context)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def GetModel(self, request: gateway_pb2.GetModelRequest, context: HttpContext) -> HttpBody:
        assert inner_peer(context, Role.ENVOY).role is Role.ENVOY  # type: ignore[arg-type]
        await context.send_initial_metadata((("x-request-id", "r"), (STATUS_HEADER, "404")))
        return HttpBody(content_type="application/json", data=json.dumps({"model": request.model}).encode())

    async def ListModels(self, request: gateway_pb2.ListModelsRequest, context: HttpContext) -> HttpBody:
        raise NotFound("nothing is served")


@dataclass
class Served:
    url: str
    servicer: Servicer
    door: HttpDoor
    client: aiohttp.ClientSession
    revocations: Revocations
    envoy: NodeIdentity
    authority: Authority
    folder: Path

    async def chat(self, **options: Any) -> aiohttp.ClientResponse:
        return await self.client.post(f"{self.url}/v1/chat/completions", data=b"{}", **options)


def refused(path: str, error: PenstockError) -> ErrorAnswer:
    return error_answer(error)


def client_of(identity: NodeIdentity) -> aiohttp.ClientSession:
    context = ssl.create_default_context(cadata=identity.authority_pem.decode())
    context.load_cert_chain(identity.files.certificate, identity.files.key)
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context))


@asynccontextmanager
async def served(folder: Path, identify: Identify | None = None) -> AsyncIterator[Served]:
    authority = Authority.open(folder / "authority")
    gateway, envoy = authority.enrol(folder / "gateway", Role.GATEWAY), authority.enrol(folder / "envoy", Role.ENVOY)
    servicer, revocations = Servicer(), Revocations()
    door = HttpDoor(Paths([SERVICE]), {SERVICE.full_name: servicer}, refused, LIMITS, revocations, None, identify)
    async with http_serving(door, "127.0.0.1", 0, gateway, 5.0) as port, client_of(envoy) as client:
        yield Served(f"https://localhost:{port}", servicer, door, client, revocations, envoy, authority, folder)


async def test_an_only_part_leaves_with_its_length(tmp_path: Path) -> None:
    async def once(request: HttpBody, context: HttpContext) -> None:
        await context.send_initial_metadata((("x-request-id", "mine"),))
        await context.write(HttpBody(content_type="application/json", data=b'{"a":1}'))

    async with served(tmp_path) as door:
        door.servicer.chat = once
        async with await door.chat(headers={"Authorization": "Bearer k"}) as answer:
            assert await answer.read() == b'{"a":1}'
            assert answer.headers["content-length"] == "7"
            assert answer.headers["x-request-id"] == "mine"
        request, metadata = door.servicer.seen[0]
        assert (request.data, metadata["authorization"]) == (b"{}", "Bearer k")


async def test_events_leave_one_by_one(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def events(request: HttpBody, context: HttpContext) -> None:
        await context.write(HttpBody(content_type="text/event-stream", data=b"data: 1\n\n"))
        await go_on.wait()
        await context.write(HttpBody(content_type="text/event-stream", data=b"data: 2\n\n"))

    async with served(tmp_path) as door:
        door.servicer.chat = events
        async with await door.chat() as answer:
            assert answer.content_type == "text/event-stream"
            assert await answer.content.readany() == b"data: 1\n\n"
            go_on.set()
            assert await answer.content.read() == b"data: 2\n\n"


async def test_parts_of_other_kinds_leave_whole(tmp_path: Path) -> None:
    async def parts(request: HttpBody, context: HttpContext) -> None:
        for part in (b"one", b"two", b"three"):
            await context.write(HttpBody(content_type="application/octet-stream", data=part))

    async with served(tmp_path) as door:
        door.servicer.chat = parts
        async with await door.chat() as answer:
            assert await answer.read() == b"onetwothree"


async def test_a_status_comes_from_the_first_metadata_and_a_path_names_a_field(tmp_path: Path) -> None:
    async with served(tmp_path) as door, door.client.get(f"{door.url}/v1/models/su%2Fms") as answer:
        assert answer.status == 404
        assert STATUS_HEADER not in answer.headers
        assert await answer.json() == {"model": "su/ms"}


async def test_a_servicer_may_take_names_and_bodies_as_they_come(tmp_path: Path) -> None:
    seen: list[tuple[str, list[tuple[str, str]], bytes]] = []

    class Taker:
        async def take_http(self, method: str, names: list[tuple[str, str]], body: bytes, context: HttpContext) -> HttpBody:
            seen.append((method, names, body))
            await context.send_initial_metadata((("x-request-id", "mine"),))
            return HttpBody(content_type="text/plain", data=b"taken")

    authority = Authority.open(tmp_path / "authority")
    gateway, envoy = authority.enrol(tmp_path / "gateway", Role.GATEWAY), authority.enrol(tmp_path / "envoy", Role.ENVOY)
    door = HttpDoor(Paths([SERVICE]), {SERVICE.full_name: Taker()}, refused, LIMITS)
    async with http_serving(door, "127.0.0.1", 0, gateway, 5.0) as port, client_of(envoy) as client:
        async with client.get(f"https://localhost:{port}/v1/models/a%2Fb?model=b&x=y") as answer:
            assert (answer.status, answer.headers["x-request-id"], await answer.read()) == (200, "mine", b"taken")
    assert seen == [("GetModel", [("model", "a/b"), ("model", "b"), ("x", "y")], b"")]


async def test_what_a_servicer_raises_is_told_as_the_path_tells_it(tmp_path: Path) -> None:
    async with served(tmp_path) as door:
        async with door.client.get(f"{door.url}/v1/models") as answer:
            assert (answer.status, (await answer.json())["error"]["message"]) == (404, "nothing is served")
        async with door.client.put(f"{door.url}/v1/nothing") as answer:
            assert (await answer.json())["error"]["message"] == "Unknown URL: PUT /v1/nothing"


async def test_a_body_that_is_too_long_is_refused_before_it_is_read_whole(tmp_path: Path) -> None:
    async with served(tmp_path) as door:
        async with door.client.post(f"{door.url}/v1/chat/completions", data=bytes(1001)) as answer:
            assert answer.status == 413
            assert "larger than the 0.000953674 MiB allowed" in (await answer.json())["error"]["message"]
        assert not door.servicer.seen


async def test_a_stranger_is_refused_before_the_body_is_waited_for(tmp_path: Path) -> None:
    async def stranger(headers: Mapping[str, str], context: HttpContext) -> None:
        assert headers["authorization"] == "Bearer nobody"
        raise Unauthenticated("nobody knows you")

    async def never_ends() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async with served(tmp_path, stranger) as door:
        async with asyncio.timeout(20):
            async with door.client.post(
                f"{door.url}/v1/chat/completions", data=never_ends(), headers={"Authorization": "Bearer nobody"}
            ) as answer:
                assert (answer.status, (await answer.json())["error"]["message"]) == (401, "nobody knows you")
        assert not door.servicer.seen


async def test_who_goes_away_cancels_the_answer_and_frees_the_place(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def hang(request: HttpBody, context: HttpContext) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with served(tmp_path) as door:
        door.servicer.chat = hang
        asked = asyncio.create_task(door.chat())
        await asyncio.wait_for(begun.wait(), 10)
        asked.cancel()
        await asyncio.wait_for(door.servicer.cancelled.wait(), 10)
        async with asyncio.timeout(10):
            while door.door.open:
                await asyncio.sleep(0.001)


async def test_an_answer_that_fails_after_it_began_is_cut_and_not_ended(tmp_path: Path) -> None:
    async def broken(request: HttpBody, context: HttpContext) -> None:
        await context.write(HttpBody(content_type="text/event-stream", data=b"data: 1\n\n"))
        raise NotFound("gone")

    async with served(tmp_path) as door:
        door.servicer.chat = broken
        async with await door.chat() as answer:
            with pytest.raises(aiohttp.ClientPayloadError):
                await answer.read()


async def test_more_than_are_taken_at_once_are_refused(tmp_path: Path) -> None:
    release, waiting = asyncio.Event(), asyncio.Semaphore(0)

    async def wait(request: HttpBody, context: HttpContext) -> None:
        waiting.release()
        await release.wait()
        await context.write(HttpBody(content_type="application/json", data=b"{}"))

    async with served(tmp_path) as door:
        door.servicer.chat = wait
        held = [asyncio.create_task(door.chat()) for _ in range(2)]
        for _ in held:
            await asyncio.wait_for(waiting.acquire(), 10)
        async with await door.chat() as answer:
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        release.set()
        assert [(await each).status for each in held] == [200, 200]


async def test_only_an_envoy_that_stands_is_served(tmp_path: Path) -> None:
    async with served(tmp_path) as door:
        worker = door.authority.enrol(tmp_path / "worker", Role.WORKER)
        async with client_of(worker) as client, client.get(f"{door.url}/v1/models/a") as answer:
            assert answer.status == 403
            assert "a worker may not call this" in (await answer.json())["error"]["message"]
        door.revocations.add(
            door.envoy.certificate.node_id if hasattr(door.envoy.certificate, "node_id") else door.envoy.node_id
        )
        async with door.client.get(f"{door.url}/v1/models/a") as answer:
            assert answer.status == 403
            assert "was revoked" in (await answer.json())["error"]["message"]


async def test_without_a_certificate_nobody_connects(tmp_path: Path) -> None:
    async with served(tmp_path) as door:
        context = ssl.create_default_context(cadata=door.envoy.authority_pem.decode())
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as client:
            with pytest.raises(aiohttp.ClientError):
                await client.get(f"{door.url}/v1/models/a")


async def test_leaving_waits_for_what_is_open(tmp_path: Path) -> None:
    begun, release = asyncio.Event(), asyncio.Event()

    async def wait(request: HttpBody, context: HttpContext) -> None:
        begun.set()
        await release.wait()
        await context.write(HttpBody(content_type="application/json", data=b"{}"))

    authority = Authority.open(tmp_path / "authority")
    gateway, envoy = authority.enrol(tmp_path / "gateway", Role.GATEWAY), authority.enrol(tmp_path / "envoy", Role.ENVOY)
    door = HttpDoor(Paths([SERVICE]), {SERVICE.full_name: Servicer(wait)}, refused, LIMITS)
    async with client_of(envoy) as client:
        async with http_serving(door, "127.0.0.1", 0, gateway, 10.0) as port:
            asked = asyncio.create_task(client.post(f"https://localhost:{port}/v1/chat/completions", data=b"{}"))
            await asyncio.wait_for(begun.wait(), 10)
            asyncio.get_running_loop().call_later(0.05, release.set)
        async with await asked as answer:
            assert await answer.read() == b"{}"
