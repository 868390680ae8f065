"""The official OpenAI client against the real Envoy and the service behind it: HTTP statuses, events, cancellation."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam
from xds import discovery_pb2_grpc

from gateway.jobs.servicer import SERVICE as JOBS
from gateway.jobs.servicer import JobServicer
from gateway.openai.peers import BatchesClient, FilesClient
from gateway.openai.servicer import SERVICE, OpenAIServicer
from gateway.refusals import FleetFull
from gateway.xds.servicer import SERVICE as DISCOVERY
from gateway.xds.types import Endpoint
from runtime.errors import Unavailable
from runtime.serving import Listen, Register, serving
from tests.gateway.jobs.scheduler import MemoryScheduler, kept_by
from tests.gateway.openai.mesh import LIMITED, PUBLISHED_AT_S, SECRET, SmallMesh, piece, small_mesh
from tests.support.edge import edge_under_test
from tests.support.envoy import LOOPBACK

TEXT = 'Hello "wörld"\n'
TALK: list[ChatCompletionMessageParam] = [{"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]}]


@dataclass(slots=True)
class OpenEdge:
    mesh: SmallMesh
    url: str

    def client(self, secret: str = SECRET) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(api_key=secret, base_url=f"{self.url}/v1", max_retries=0, timeout=20)


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[OpenEdge]:
    mesh = small_mesh()
    async with kept_by(MemoryScheduler()) as schedulers, edge_under_test(tmp_path) as made:
        registers: list[Register] = [
            OpenAIServicer(mesh, FilesClient(schedulers), BatchesClient(schedulers)).register,
            JobServicer(mesh, schedulers).register,
            partial(discovery_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server, made.discovery),
        ]
        listen = Listen(LOOPBACK, 0, made.identity)
        server = serving([listen], registers, (SERVICE, JOBS, DISCOVERY), drain_grace_s=0.2)
        running = await made.stack.enter_async_context(server)
        gateway = Endpoint(LOOPBACK, running.ports[0])
        made.publish(gateway)
        await (await made.envoy(gateway)).until_listening(made.edge.listen)
        await made.settled()
        yield OpenEdge(mesh, made.url)


async def test_a_chat(edge: OpenEdge) -> None:
    async with edge.client() as client:
        answer = await client.chat.completions.create(
            model="sums", messages=TALK, temperature=0, extra_headers={"x-request-id": "r-1"}
        )
        assert answer.choices[0].message.content == TEXT
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage is not None
        assert answer.usage.total_tokens == 10
        assert answer._request_id == "r-1"
    assert edge.mesh.router.calls[0].request_id == "r-1"


async def test_a_chat_token_by_token(edge: OpenEdge) -> None:
    async with edge.client() as client:
        stream = await client.chat.completions.create(
            model="sums", messages=TALK, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert stream.response.headers["content-type"] == "text/event-stream"
        assert stream.response.headers["cache-control"] == "no-cache"
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert choices[0].delta.role == "assistant"
    assert "".join(choice.delta.content or "" for choice in choices) == TEXT
    assert choices[-1].finish_reason == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3


async def test_the_clients_own_stream_helper(edge: OpenEdge) -> None:
    async with edge.client() as client:
        async with client.chat.completions.stream(model="sums", messages=TALK) as stream:
            final = await stream.get_final_completion()
    assert final.choices[0].message.content == TEXT


async def test_completions(edge: OpenEdge) -> None:
    async with edge.client() as client:
        assert (await client.completions.create(model="words", prompt="a")).choices[0].text == TEXT
        stream = await client.completions.create(model="words", prompt="a", stream=True)
        assert "".join([chunk.choices[0].text async for chunk in stream]) == TEXT


async def test_embeddings(edge: OpenEdge) -> None:
    async with edge.client() as client:
        # The client asks for base64 by itself and decodes it.
        answer = await client.embeddings.create(model="vectors", input=["a", "b"])
        assert [each.embedding for each in answer.data] == [[10, 11, 12], [13, 14, 15]]
        plain = await client.embeddings.create(model="vectors", input=["a", "b"], encoding_format="float")
        assert [each.embedding for each in plain.data] == [each.embedding for each in answer.data]
        raw = await client.embeddings.with_raw_response.create(model="vectors", input="a", encoding_format="base64")
        encoded = raw.http_response.json()["data"][0]["embedding"]
        assert np.frombuffer(base64.b64decode(encoded), "<f4").tolist() == [5, 6, 7]


async def test_models(edge: OpenEdge) -> None:
    async with edge.client() as client:
        assert [model.id async for model in client.models.list()] == ["digits", "sums", "vectors", "words"]
        assert (await client.models.retrieve("sums")).created == PUBLISHED_AT_S
        with pytest.raises(openai.NotFoundError) as missing:
            await client.models.retrieve("nothing")
        assert missing.value.code == "model_not_found"


async def test_errors_are_the_clients_own_kinds(edge: OpenEdge) -> None:
    async with edge.client("sk-wrong") as stranger:
        with pytest.raises(openai.AuthenticationError) as wrong:
            await stranger.chat.completions.create(model="sums", messages=TALK)
        assert wrong.value.code == "invalid_api_key"
    async with edge.client(LIMITED) as limited:
        await limited.models.list()
        with pytest.raises(openai.RateLimitError) as often:
            await limited.chat.completions.create(model="sums", messages=TALK)
        assert often.value.code == "rate_limit_exceeded"
        assert often.value.response.headers["retry-after"] == "2"
        assert 0 < int(often.value.response.headers["retry-after-ms"]) <= 2000
    async with edge.client() as client:
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.chat.completions.create(model="nothing", messages=TALK, stream=True)
        assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
        with pytest.raises(openai.BadRequestError) as many:
            await client.chat.completions.create(model="sums", messages=TALK, n=2)
        assert (many.value.code, many.value.param) == ("unsupported_parameter", "n")
        edge.mesh.router.answers = (FleetFull("all copies are full", retry_after_s=0.25),)
        with pytest.raises(openai.InternalServerError) as full:
            await client.chat.completions.create(model="sums", messages=TALK)
        assert (full.value.status_code, full.value.code) == (503, "overloaded")
        assert full.value.request_id


async def test_the_client_retries_what_may_fare_better(edge: OpenEdge) -> None:
    async with edge.client(LIMITED) as client:
        await client.models.list()
        answer = await client.with_options(max_retries=2).chat.completions.create(model="sums", messages=TALK)
        assert answer.choices[0].message.content == TEXT


async def test_a_failure_in_the_middle_reaches_the_client(edge: OpenEdge) -> None:
    edge.mesh.router.answers = (piece("Hel"), Unavailable("the worker was lost"))
    async with edge.client() as client:
        stream = await client.chat.completions.create(model="sums", messages=TALK, stream=True)
        with pytest.raises(openai.APIError, match="the worker was lost"):
            async for _ in stream:
                pass


async def test_a_client_that_leaves_ends_the_generation(edge: OpenEdge) -> None:
    edge.mesh.router.answers, edge.mesh.router.hang = (piece("first"),), True
    async with edge.client() as client:
        stream = await client.chat.completions.create(model="sums", messages=TALK, stream=True)
        await anext(aiter(stream))
        await stream.close()
        await asyncio.wait_for(edge.mesh.router.left.wait(), 5)


async def test_one_request_id_comes_back(edge: OpenEdge) -> None:
    async with httpx.AsyncClient(base_url=edge.url) as client:
        answer = await client.get("/v1/models", headers={"authorization": f"Bearer {SECRET}", "x-request-id": "mine"})
        assert answer.headers.get_list("x-request-id") == ["mine"]
        refused = await client.post("/v1/chat/completions", content=b"{", headers={"authorization": f"Bearer {SECRET}"})
        assert refused.status_code == 400
        assert len(refused.headers.get_list("x-request-id")) == 1


async def test_a_long_conversation(edge: OpenEdge) -> None:
    long: list[ChatCompletionMessageParam] = [{"role": "user", "content": "wörld " * 500_000}]
    async with edge.client() as client:
        started_s = time.monotonic()
        await client.chat.completions.create(model="sums", messages=long)
        assert time.monotonic() - started_s < 10
    assert len(edge.mesh.router.asked[0].chat.messages[0].content) == 3_000_000


async def test_files_and_batches(edge: OpenEdge) -> None:
    async with edge.client() as client:
        lines = b'{"custom_id":"a"}\n' * 50_000
        made = await client.files.create(file=("in.jsonl", lines), purpose="batch")
        assert (made.bytes, made.filename, made.status) == (len(lines), "in.jsonl", "processed")
        kept = await client.files.create(file=b"{}", purpose="batch", expires_after={"anchor": "created_at", "seconds": 3600})
        assert kept.expires_at == kept.created_at + 3600
        assert [file.id async for file in client.files.list(limit=1, order="asc")] == [made.id, kept.id]
        assert (await client.files.retrieve(made.id)).id == made.id
        assert (await client.files.content(made.id)).content == lines
        batch = await client.batches.create(
            input_file_id=made.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"night": "1"}
        )
        assert (batch.status, batch.metadata) == ("validating", {"night": "1"})
        assert (await client.batches.retrieve(batch.id)).input_file_id == made.id
        assert [each.id async for each in client.batches.list(limit=1)] == [batch.id]
        assert (await client.batches.cancel(batch.id)).status == "cancelling"
        assert (await client.files.delete(made.id)).deleted
        with pytest.raises(openai.NotFoundError) as gone:
            await client.files.content(made.id)
        assert (gone.value.code, gone.value.param) == ("file_not_found", "file_id")
        with pytest.raises(openai.BadRequestError) as refused:
            await client.files.create(file=b"{}", purpose="fine-tune")
        assert refused.value.param == "purpose"


async def test_jobs_as_json(edge: OpenEdge) -> None:
    edge.mesh.targets._enforced = False  # whose models they are is told by notices, and not what this is about
    headers = {"authorization": f"Bearer {SECRET}"}
    async with httpx.AsyncClient(base_url=edge.url, headers=headers, timeout=20) as client:
        body = base64.b64encode(b'{"model":"sums","messages":[{"role":"user","content":"?"}]}').decode()
        call = {"http": {"path": "/v1/chat/completions", "body": body}}
        made = (await client.post("/v1/jobs", json={"call": call, "idempotency_key": "n"})).json()["job"]
        assert (made["state"], made["owner"]["tenant"]) == ("JOB_STATE_QUEUED", "acme")
        job = f"/v1/jobs/{made['job_id']}"
        assert (await client.get(job)).json()["job"]["job_id"] == made["job_id"]
        assert len((await client.get("/v1/jobs")).json()["jobs"]) == 1
        async with client.stream("GET", f"{job}:watch") as watching:
            changes = watching.aiter_text()
            assert '"JOB_STATE_QUEUED"' in await anext(changes)
            assert (await client.post(f"{job}:cancel", json={})).json()["job"]["state"] == "JOB_STATE_CANCELLED"
            assert '"JOB_STATE_CANCELLED"' in "".join([change async for change in changes])
        assert (await client.get("/v1/dead-letters")).json() == {}
        assert (await client.post("/v1/dead-letters:replay", json={})).json() == {}
        unknown = await client.get("/v1/jobs/nothing")
        assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "invalid_request_error")
        stranger = await client.get(job, headers={"authorization": "Bearer sk-wrong"})
        assert stranger.status_code == 401
        inner = await client.post("/penstock.scheduler.v1.FleetService/WatchFleet", json={})
        assert inner.status_code == 404
