"""A generation whose worker is lost, at every position of it: what its caller gets is what it would have got."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from inference import grpc_service_pb2
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from penstock.worker.v1 import worker_pb2

from gateway.exchange import Exchange
from gateway.journeys import MAX_MIGRATIONS
from gateway.links.link import WorkerLink
from gateway.links.types import LinkLost, LinkSettings, Method
from placement.routing.retry_budget import RetryBudget
from placement.types import Request
from runtime.errors import Internal, InvalidArgument, PenstockError, Unavailable, UpstreamUnavailable
from runtime.identity import Authority, Role
from runtime.ids import ModelName, WorkerId
from runtime.serving import Listen, serving
from tests.gateway.fakes import copy_of, worker_of
from tests.gateway.routed import CALL, Routed, routed
from tests.support.generating import MODEL, BreakingLink, generate_request, infer_request, model_folder, opened_model
from worker.engine import EngineFailed
from worker.execute.execution import SERVICE, Execution
from worker.inference import TableInference

ASKED = Request(ModelName(MODEL))
PROMPT = "What is 12 plus 30?"
GREEDY = worker_pb2.Sampling(temperature=0)
SEEDED = worker_pb2.Sampling(temperature=1.3, seed=11)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("llama"))


@pytest.fixture
async def inference(folder: Path) -> AsyncIterator[TableInference]:
    made, model = await opened_model(folder)
    yield made
    model.close()


@dataclass
class Broken:
    mesh: Routed
    links: dict[str, BreakingLink]

    @property
    def asked(self) -> int:
        return sum(link.calls for link in self.links.values())


@asynccontextmanager
async def broken(
    inference: TableInference,
    *cuts: int,
    failure: PenstockError | None = None,
    budget: RetryBudget | None = None,
    workers: str = "abcd",
) -> AsyncIterator[Broken]:
    """Workers of which the first that is asked is lost after so many answers, the next after the next number, and so on."""
    shared = list(cuts)
    links = {each: BreakingLink("127.0.0.1:1", inference=inference, cuts=shared, failure=failure) for each in workers}
    fleet = [worker_of(each, copy_of(MODEL, task="chat")) for each in workers]
    async with routed(*fleet, links=links, budget=budget) as mesh:  # type: ignore[arg-type]
        yield Broken(mesh, links)


async def answers_of(
    mesh: Routed, payload: bytes, method: Method = Method.GENERATE, exchange: Exchange | None = None
) -> list[bytes]:
    async with aclosing(mesh.router.stream(method, ASKED, payload, CALL, exchange)) as answers:
        return [answer async for answer in answers]


async def unbroken(inference: TableInference, payload: bytes, method: Method = Method.GENERATE) -> list[bytes]:
    async with broken(inference) as whole:
        return await answers_of(whole.mesh, payload, method)


def same(made: Sequence[bytes], expected: Sequence[bytes]) -> None:
    """Answer for answer; log probabilities as nearly as a prompt computed at once and token by token agree."""
    assert len(made) == len(expected)
    for ours, theirs in zip(map(_read, made), map(_read, expected), strict=True):
        assert [each.logprob for each in _places(ours)] == pytest.approx([each.logprob for each in _places(theirs)], abs=1e-4)
        for message in (ours, theirs):
            for place in _places(message):
                place.logprob = 0.0
        assert ours == theirs


def _read(answer: bytes) -> worker_pb2.GenerateResponse:
    return worker_pb2.GenerateResponse.FromString(answer)


def _places(message: worker_pb2.GenerateResponse) -> list[worker_pb2.Logprob]:
    return [place for each in message.logprobs for place in (each.chosen, *each.top)]


OF_BYTES = "seeded, with letters of several bytes"
REQUESTS = {
    "greedy": generate_request(PROMPT, sampling=GREEDY, max_tokens=40),
    OF_BYTES: generate_request(PROMPT, sampling=SEEDED, max_tokens=40),
    "seeded, of the likeliest": generate_request(
        "1", sampling=worker_pb2.Sampling(temperature=1.0, top_p=0.9, top_k=50, seed=3), max_tokens=40
    ),
    "penalised": generate_request(
        PROMPT,
        sampling=worker_pb2.Sampling(temperature=0, frequency_penalty=1.5, presence_penalty=0.5, repetition_penalty=1.3),
        max_tokens=40,
    ),
    "with log probabilities": generate_request(PROMPT, sampling=SEEDED, max_tokens=20, top_logprobs=3),
    "a conversation": generate_request(PROMPT, chat=True, sampling=GREEDY, max_tokens=24),
}


@pytest.mark.parametrize("payload", REQUESTS.values(), ids=REQUESTS)
async def test_lost_at_every_position_the_answers_are_the_same(inference: TableInference, payload: bytes) -> None:
    expected = await unbroken(inference, payload)
    assert len(expected) > 4
    if payload == REQUESTS[OF_BYTES]:
        assert any(len(_read(each).token_ids) > 1 for each in expected)  # letters that were held back until they were whole
    for position in range(len(expected) + 1):
        exchange = Exchange("test")
        async with broken(inference, position) as lost:
            same(await answers_of(lost.mesh, payload, exchange=exchange), expected)
            ends_there = position == len(expected)  # the end had been told: nothing is left to ask for
            assert lost.asked == (1 if ends_there else 2)
            assert exchange.migrations == (0 < position < len(expected))
            assert lost.mesh.in_flight() == dict.fromkeys("abcd", 0)


async def test_a_stop_string_over_the_seam_stops(inference: TableInference) -> None:
    """Every pair of neighbouring letters as a stop, and every place between: its first letter was held back, and comes anew."""
    whole = "".join(_read(each).text for each in await unbroken(inference, REQUESTS["greedy"]))
    for start in range(0, 12, 3):
        payload = generate_request(PROMPT, sampling=GREEDY, max_tokens=40, stop=[whole[start : start + 3], "never met"])
        expected = await unbroken(inference, payload)
        assert _read(expected[-1]).finish_reason == worker_pb2.FINISH_REASON_STOP
        for position in range(1, len(expected)):
            async with broken(inference, position) as lost:
                same(await answers_of(lost.mesh, payload), expected)


async def test_lost_again_and_again_up_to_the_limit(inference: TableInference) -> None:
    payload = REQUESTS[OF_BYTES]
    expected, exchange = await unbroken(inference, payload), Exchange("test")
    async with broken(inference, 3, 1, 5) as lost:
        same(await answers_of(lost.mesh, payload, exchange=exchange), expected)
        assert (exchange.migrations, exchange.attempts) == (MAX_MIGRATIONS, 4)
        assert lost.mesh.counted("penstock_gateway_migrations_total", reason="LINK_LOST", granted="yes") == MAX_MIGRATIONS
    async with broken(inference, 3, 1, 5, 2) as lost:
        reading = lost.mesh.router.stream(Method.GENERATE, ASKED, payload, CALL)
        same([await anext(reading) for _ in range(11)], expected[:11])
        with pytest.raises(LinkLost):
            await anext(reading)
        assert lost.mesh.counted("penstock_gateway_migrations_total", reason="LINK_LOST", granted="no") == 1


async def test_two_workers_that_are_lost_in_turn_are_enough(inference: TableInference) -> None:
    """The one that was lost first is there again by the time at which the other goes."""
    payload = REQUESTS["greedy"]
    expected = await unbroken(inference, payload)
    async with broken(inference, 4, 4, workers="ab") as lost:
        same(await answers_of(lost.mesh, payload), expected)
        assert sorted(link.calls for link in lost.links.values()) == [1, 2]


async def test_without_another_worker_the_loss_is_told(inference: TableInference) -> None:
    async with broken(inference, 4, workers="a") as lost:
        with pytest.raises(LinkLost, match="killed after 4"):
            await answers_of(lost.mesh, REQUESTS["greedy"])
        assert lost.mesh.counted("penstock_gateway_migrations_total", reason="LINK_LOST", granted="no") == 1


async def test_it_goes_on_at_the_version_it_began_with(inference: TableInference) -> None:
    newer = worker_of("b", copy_of(MODEL, "2", task="chat"))
    async with broken(inference, 4, workers="ab") as lost:
        reading = lost.mesh.router.stream(Method.GENERATE, ASKED, REQUESTS["greedy"], CALL)
        await anext(reading)
        lost.mesh.tell(worker_of("a", copy_of(MODEL, task="chat")), newer)
        with pytest.raises(LinkLost):
            async for _ in reading:
                pass
        assert lost.asked == 1


@pytest.mark.parametrize("failure", [EngineFailed("out of memory"), Unavailable("draining"), Internal("a bug")])
async def test_an_engine_that_fails_in_the_middle_is_left(inference: TableInference, failure: PenstockError) -> None:
    expected = await unbroken(inference, REQUESTS["greedy"])
    async with broken(inference, 4, failure=failure) as lost:
        same(await answers_of(lost.mesh, REQUESTS["greedy"]), expected)


@pytest.mark.parametrize("failure", [UpstreamUnavailable("broke off"), InvalidArgument("no")])
async def test_what_another_worker_would_answer_as_well_is_not_asked_of_it(
    inference: TableInference, failure: PenstockError
) -> None:
    async with broken(inference, 4, failure=failure) as lost:
        with pytest.raises(type(failure)):
            await answers_of(lost.mesh, REQUESTS["greedy"])
        assert lost.asked == 1


async def test_a_lost_worker_costs_the_retry_budget_nothing_and_a_second_one_does(inference: TableInference) -> None:
    expected = await unbroken(inference, REQUESTS["greedy"])
    async with broken(inference, 4, budget=RetryBudget(0.0, 0.0)) as lost:
        same(await answers_of(lost.mesh, REQUESTS["greedy"]), expected)
    async with broken(inference, 4, 4, budget=RetryBudget(0.0, 0.0)) as lost:
        with pytest.raises(LinkLost):
            await answers_of(lost.mesh, REQUESTS["greedy"])


async def test_where_it_is_traced_the_span_tells(inference: TableInference) -> None:
    with TracerProvider().get_tracer("test").start_as_current_span("asked") as span:
        async with broken(inference, 4) as lost:
            await answers_of(lost.mesh, REQUESTS["greedy"])
    assert isinstance(span, ReadableSpan)
    assert [(event.name, dict(event.attributes or {})) for event in span.events] == [
        ("sent_elsewhere", {"reason": "LINK_LOST", "migrations": 1, "failed": 1})
    ]


async def test_a_text_model_asked_over_kserve_goes_on_as_well(inference: TableInference) -> None:
    payload = infer_request(PROMPT, max_tokens=24, temperature=1.3, seed=11, logprobs=1)
    expected = await unbroken(inference, payload, Method.STREAM_INFER)
    for position in range(len(expected) + 1):
        async with broken(inference, position) as lost:
            made = await answers_of(lost.mesh, payload, Method.STREAM_INFER)
            assert [_kserve(answer) for answer in made] == [_kserve(answer) for answer in expected]


def _kserve(answer: bytes) -> dict[str, Any]:
    response = grpc_service_pb2.ModelStreamInferResponse.FromString(answer).infer_response
    told = {name: str(value) for name, value in response.parameters.items() if name != "logprobs"}
    return {"raw": list(response.raw_output_contents), "logprobs": "logprobs" in response.parameters, **told}


async def test_a_worker_killed_over_the_network(folder: Path, tmp_path: Path) -> None:
    """Real streams with mTLS: the server of the worker that answers is stopped without grace, early, in between and late."""
    authority = Authority.open(tmp_path)
    gateway = authority.enrol(tmp_path / "gateway", Role.GATEWAY)
    inference, model = await opened_model(folder)
    payload = REQUESTS[OF_BYTES]
    expected = await unbroken(inference, payload)
    for position in (1, len(expected) // 2, len(expected) - 5):
        async with AsyncExitStack() as stack:
            servers: dict[str, grpc.aio.Server] = {}
            links: dict[str, WorkerLink] = {}
            for name in ("a", "b"):
                identity = authority.enrol(tmp_path / f"{name}{position}", Role.WORKER)
                execution = Execution(inference, WorkerId(identity.node_id), asyncio.Event())
                listen = [Listen("127.0.0.1", 0, identity)]
                running = await stack.enter_async_context(serving(listen, [execution.register], [SERVICE], drain_grace_s=0.1))
                servers[identity.node_id] = running.server
                address = f"127.0.0.1:{running.ports[0]}"
                settings = LinkSettings(credit=2)  # so that the end is not here before the worker is killed
                links[identity.node_id] = WorkerLink(address, gateway, WorkerId(identity.node_id), settings=settings)
            fleet = [worker_of(each, copy_of(MODEL, task="chat"), address=link.address) for each, link in links.items()]
            mesh = await stack.enter_async_context(routed(*fleet, links=links))  # type: ignore[arg-type]
            made, exchange = [], Exchange("test")
            async for answer in mesh.router.stream(Method.GENERATE, ASKED, payload, CALL, exchange):
                made.append(answer)
                if len(made) == position:
                    await servers[exchange.worker_id].stop(0)
            same(made, expected)
            assert exchange.migrations == 1
    model.close()
