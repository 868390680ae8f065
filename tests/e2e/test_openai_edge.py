"""The official OpenAI client against the real Envoy and the service behind it: HTTP statuses, events, cancellation."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import openai
import pydantic
import pytest
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam
from penstock.gateway.v1 import gateway_pb2
from penstock.worker.v1 import worker_pb2
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
from tests.gateway.openai.mesh import LIMITED, PUBLISHED_AT_S, SECRET, SmallMesh, called, piece, small_mesh
from tests.support.edge import edge_under_test
from tests.support.envoy import LOOPBACK

OPENAI = gateway_pb2.DESCRIPTOR.services_by_name["OpenAIService"]
TEXT = 'Hello "wörld"\n'
ADD: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}
TALK: list[ChatCompletionMessageParam] = [{"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]}]


@dataclass(slots=True)
class OpenEdge:
    mesh: SmallMesh
    url: str

    def client(self, secret: str = SECRET) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(api_key=secret, base_url=f"{self.url}/v1", max_retries=0, timeout=20)


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[OpenEdge]:
    """As it is in production: the edge brings HTTP to the gateway's HTTP port."""
    async with opened(tmp_path, transcoded=False) as made:
        yield made


@asynccontextmanager
async def opened(folder: Path, *, transcoded: bool) -> AsyncIterator[OpenEdge]:
    mesh = small_mesh()
    async with kept_by(MemoryScheduler()) as schedulers, edge_under_test(folder) as made:
        openai_servicer = OpenAIServicer(mesh, FilesClient(schedulers), BatchesClient(schedulers))
        registers: list[Register] = [
            openai_servicer.register,
            JobServicer(mesh, schedulers).register,
            partial(discovery_pb2_grpc.add_AggregatedDiscoveryServiceServicer_to_server, made.discovery),
        ]
        listen = Listen(LOOPBACK, 0, made.identity)
        server = serving([listen], registers, (SERVICE, JOBS, DISCOVERY), drain_grace_s=0.2)
        running = await made.stack.enter_async_context(server)
        gateway = Endpoint(LOOPBACK, running.ports[0])
        if not transcoded:
            await made.door(gateway, OPENAI, openai_servicer)
        made.publish(gateway)
        await (await made.envoy(gateway)).until_listening(made.edge.listen)
        await made.settled()
        yield OpenEdge(mesh, made.url)


async def test_an_edge_that_knows_no_http_port_transcodes(tmp_path: Path) -> None:
    async with opened(tmp_path, transcoded=True) as edge, edge.client() as client:
        answer = await client.chat.completions.create(model="sums", messages=TALK)
        assert answer.choices[0].message.content == TEXT
        chunks = [chunk async for chunk in await client.chat.completions.create(model="sums", messages=TALK, stream=True)]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
        with pytest.raises(openai.NotFoundError) as missing:
            await client.models.retrieve("nothing")
        assert missing.value.code == "model_not_found"


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


async def test_several_answers(edge: OpenEdge) -> None:
    async with edge.client() as client:
        whole = await client.chat.completions.create(model="sums", messages=TALK, n=3, seed=5)
        assert [choice.message.content for choice in whole.choices] == [TEXT] * 3
        assert whole.usage is not None
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (7, 9)
        read: dict[int, str] = {}
        async for chunk in await client.chat.completions.create(model="sums", messages=TALK, n=3, stream=True):
            for choice in chunk.choices:
                read[choice.index] = read.get(choice.index, "") + (choice.delta.content or "")
        assert read == dict.fromkeys(range(3), TEXT)
        prompts = await client.completions.create(model="words", prompt=["a", "b"], n=2)
        assert [choice.index for choice in prompts.choices] == [0, 1, 2, 3]


async def test_tools(edge: OpenEdge) -> None:
    edge.mesh.router.answers = (
        called(0, "c1", "add"),
        called(0, arguments='{"a": 40, '),
        called(0, arguments='"b": 2}'),
        called(1, "c2", "now", "{}"),
        piece("", worker_pb2.FINISH_REASON_TOOL_CALLS, 4, 5),
    )
    async with edge.client() as client:
        async with client.chat.completions.stream(model="able", messages=TALK, tools=[ADD]) as stream:
            final = await stream.get_final_completion()
        whole = await client.chat.completions.create(model="able", messages=TALK, tools=[ADD])
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model="sums", messages=TALK, tools=[ADD])
    for answer in (final, whole):
        calls = [call for call in answer.choices[0].message.tool_calls or () if call.type == "function"]
        assert [(call.id, call.function.name) for call in calls] == [("c1", "add"), ("c2", "now")]
        assert json.loads(calls[0].function.arguments) == {"a": 40, "b": 2}
        assert answer.choices[0].finish_reason == "tool_calls"
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "tools")


class Sum(pydantic.BaseModel):
    total: int


async def test_an_answer_of_a_given_form(edge: OpenEdge) -> None:
    edge.mesh.router.answers = (piece('{"total": 4}'), piece("", worker_pb2.FINISH_REASON_STOP, 4, 5))
    async with edge.client() as client:
        parsed = await client.chat.completions.parse(model="able", messages=TALK, response_format=Sum)
        assert parsed.choices[0].message.parsed == Sum(total=4)
        assert json.loads(edge.mesh.router.asked[0].response_format_json)["json_schema"]["name"] == "Sum"
        with pytest.raises(openai.BadRequestError, match="does not have the capability 'json_schema'"):
            await client.chat.completions.parse(model="sums", messages=TALK, response_format=Sum)


async def test_log_probabilities(edge: OpenEdge) -> None:
    chosen, other = worker_pb2.Logprob(token=b"4", logprob=-0.1), worker_pb2.Logprob(token=b"5", logprob=-3)
    token = worker_pb2.TokenLogprob(chosen=chosen, top=[chosen, other])
    first = worker_pb2.GenerateResponse(text="4", logprobs=[token]).SerializeToString()
    edge.mesh.router.answers = (first, piece("", worker_pb2.FINISH_REASON_STOP, 4, 1))
    async with edge.client() as client:
        answer = await client.chat.completions.create(model="able", messages=TALK, logprobs=True, top_logprobs=2)
        told = answer.choices[0].logprobs
        assert told is not None
        assert [(each.token, [top.token for top in each.top_logprobs]) for each in told.content or ()] == [("4", ["4", "5"])]
        text = await client.completions.create(model="able", prompt="2 + 2 =", logprobs=2)
        older = text.choices[0].logprobs
        assert older is not None
        assert (older.tokens, older.text_offset) == (["4"], [7])


async def test_headers(edge: OpenEdge) -> None:
    async with edge.client() as client:
        raw = await client.chat.completions.with_raw_response.create(model="sums", messages=TALK)
        assert raw.headers["x-request-id"]
        assert int(raw.headers["openai-processing-ms"]) >= 0
        assert float(raw.headers["x-penstock-overhead-ms"]) >= 0
        edge.mesh.router.answering = "able"
        raw = await client.chat.completions.with_raw_response.create(model="sums", messages=TALK)
        assert (raw.headers["x-penstock-model"], raw.parse().model) == ("able", "able")


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
        assert [model.id async for model in client.models.list()] == ["able", "digits", "sums", "vectors", "words"]
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
            await client.chat.completions.create(model="sums", messages=TALK, n=17)
        assert (many.value.code, many.value.param) == ("out_of_range", "n")
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
