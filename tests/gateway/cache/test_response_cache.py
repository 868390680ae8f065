"""What is given again, to whom, and for how long."""

from __future__ import annotations

from dataclasses import replace

import pytest
from inference import grpc_service_pb2 as kserve
from penstock.worker.v1 import worker_pb2

from gateway.cache.types import CacheSettings
from gateway.exchange import Exchange
from gateway.links.types import CallContext, Method
from placement.types import CopyState, Request
from runtime.errors import InvalidArgument
from runtime.ids import ModelName
from tests.gateway.cache.asked import OURS, THEIRS, cached, prompt, repeatable, tensors
from tests.gateway.fakes import copy_of, worker_of


async def test_the_same_request_gets_the_same_answer_and_costs_the_worker_nothing() -> None:
    async with cached() as mesh:
        first, second = Exchange("ModelInfer"), Exchange("ModelInfer")
        assert await mesh.infer(tensors(), exchange=first) == 1
        assert await mesh.infer(tensors(priority=7), exchange=second) == 1
        assert mesh.asked.times == 1
        assert (first.cache, second.cache) == ("miss", "hit")
        assert (second.model, second.version, second.worker_id, second.attempts) == ("m", "1", "", 0)


async def test_an_answer_bears_the_id_of_its_own_request() -> None:
    async with cached() as mesh:
        ids = []
        for request_id in ("one", "", "three"):
            raw = await mesh.raw(tensors(request_id=request_id))
            ids.append(kserve.ModelInferResponse.FromString(raw).id)
        assert ids == ["one", "", "three"]
        assert mesh.asked.times == 1


async def test_another_value_is_another_request() -> None:
    async with cached() as mesh:
        assert [await mesh.infer(tensors(bytes([each, 0, 0, 0]))) for each in (1, 2, 1)] == [1, 2, 1]


async def test_tenants_share_no_answers() -> None:
    async with cached() as mesh:
        answers = [await mesh.infer(tensors(), call) for call in (OURS, THEIRS, OURS, THEIRS)]
        assert answers == [1, 2, 1, 2]


async def test_answers_grow_old() -> None:
    async with cached(settings=CacheSettings(ttl_s=60)) as mesh:
        assert await mesh.infer(tensors()) == 1
        await mesh.clock.advance(59)
        assert await mesh.infer(tensors()) == 1
        await mesh.clock.advance(1)
        assert await mesh.infer(tensors()) == 2


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(kserve.ModelInferRequest(model_name="m", raw_input_contents=[b""]).SerializeToString(), id="malformed"),
        pytest.param(
            kserve.ModelInferRequest(
                model_name="m", parameters={"sequence_id": kserve.InferParameter(int64_param=4)}
            ).SerializeToString(),
            id="of a sequence",
        ),
    ],
)
async def test_what_has_no_form_is_asked_each_time(payload: bytes) -> None:
    async with cached() as mesh:
        exchange = Exchange("ModelInfer")
        assert [await mesh.infer(payload, exchange=exchange) for _ in range(2)] == [1, 2]
        assert exchange.cache == ""


async def test_only_models_that_say_so_are_looked_for() -> None:
    async with cached(worker_of("w", repeatable("m"), copy_of("n"))) as mesh:
        assert [mesh.cache.covers(ModelName(each)) for each in ("m", "n", "gone")] == [True, False, False]


async def test_a_failure_is_not_kept() -> None:
    async with cached() as mesh:
        mesh.asked.errors.append(InvalidArgument("shape"))
        with pytest.raises(InvalidArgument):
            await mesh.infer(tensors())
        assert [await mesh.infer(tensors()) for _ in range(2)] == [2, 2]


async def test_a_version_of_another_digest_is_another_model() -> None:
    async with cached() as mesh:
        assert await mesh.infer(tensors()) == 1
        mesh.mesh.tell(worker_of("w", repeatable(digest="e" * 64)))
        assert await mesh.infer(tensors()) == 2


async def test_the_newest_version_and_its_number_are_one() -> None:
    async with cached(worker_of("w", repeatable(version="1"), repeatable(version="2", digest="e" * 64))) as mesh:
        mesh.asked.version = "2"
        assert [await mesh.infer(tensors(), version=version) for version in ("", "2", "")] == [1, 1, 1]
        mesh.asked.version = "1"
        assert await mesh.infer(tensors(), version="1") == 2


async def test_what_another_version_or_a_fallback_answered_is_not_kept() -> None:
    async with cached() as mesh:
        mesh.asked.version = "2"
        assert [await mesh.infer(tensors()) for _ in range(2)] == [1, 2]
        mesh.asked.version, mesh.asked.model = "1", "other"
        assert [await mesh.infer(tensors()) for _ in range(2)] == [3, 4]


async def test_nothing_of_a_withdrawn_version_is_given() -> None:
    async with cached() as mesh:
        assert await mesh.infer(tensors()) == 1
        mesh.mesh.tell(worker_of("w"))
        assert not mesh.cache.covers(ModelName("m"))
        assert await mesh.infer(tensors()) == 2


async def test_an_answer_outlives_the_copies_that_answer() -> None:
    """A version that is named may be between two copies; what it answers is known."""
    async with cached() as mesh:
        assert await mesh.infer(tensors()) == 1
        mesh.mesh.tell(worker_of("w", replace(repeatable(), state=CopyState.LOADING)))
        assert await mesh.infer(tensors()) == 1


async def test_two_digests_under_one_number_are_two_things() -> None:
    workers = worker_of("a", repeatable()), worker_of("b", repeatable(digest="e" * 64))
    async with cached(*workers) as mesh:
        assert not mesh.cache.covers(ModelName("m"))


async def test_a_request_with_state_at_its_worker_goes_there() -> None:
    async with cached() as mesh:
        answers = [await mesh.infer(tensors(), session_key="t/m/4", sticky=True) for _ in range(2)]
        assert answers == [1, 2]


async def test_statistics_and_metrics_tell_what_was_found() -> None:
    async with cached() as mesh:
        for value in (b"\0\0\0\0", b"\0\0\0\1", b"\0\0\0\0"):
            await mesh.infer(tensors(value))
        counts = mesh.cache.counts[ModelName("m"), "1"]  # type: ignore[index]
        assert (counts.hits, counts.misses) == (1, 2)
        assert 0 < counts.hit_ns < 30e9
        counted = mesh.mesh.counted
        assert counted("penstock_gateway_cache_requests_total", model="m", found="yes") == 1
        assert counted("penstock_gateway_cache_requests_total", model="m", found="no") == 2
        assert counted("penstock_gateway_cache_entries") == 2
        assert 1024 < counted("penstock_gateway_cache_bytes") < 2048


async def test_an_answer_that_is_too_large_is_given_and_not_kept() -> None:
    async with cached(settings=CacheSettings(max_bytes=160)) as mesh:
        assert [await mesh.infer(tensors()) for _ in range(2)] == [1, 2]


async def test_a_text_is_replayed_message_by_message() -> None:
    async with cached() as mesh:
        first, second = Exchange("CreateCompletion"), Exchange("CreateCompletion")
        assert await mesh.text(prompt(), exchange=first) == ["a1"] * 3
        assert await mesh.text(prompt(), exchange=second) == ["a1"] * 3
        assert (first.cache, second.cache, second.version) == ("miss", "hit", "1")
        assert await mesh.text(prompt("ho")) == ["a2"] * 3
        assert await mesh.text(prompt(), THEIRS) == ["a3"] * 3


async def test_a_text_that_is_drawn_at_random_is_asked_each_time() -> None:
    async with cached() as mesh:
        assert [await mesh.text(prompt(temperature=0.7), most=1) for _ in range(2)] == [["a1"], ["a2"]]
        assert [await mesh.text(prompt(temperature=0.7, seed=5), most=None) for _ in range(2)] == [["a3"] * 3] * 2


async def test_a_reader_that_goes_with_the_last_message_has_had_all_of_it() -> None:
    async with cached() as mesh:
        assert await mesh.text(prompt(), most=3) == ["a1"] * 3
        assert await mesh.text(prompt()) == ["a1"] * 3


async def test_half_a_text_is_not_kept() -> None:
    async with cached() as mesh:
        await mesh.text(prompt(), most=2)
        mesh.asked.cut_after = 2
        assert await mesh.text(prompt()) == ["a2"] * 2
        mesh.asked.cut_after, mesh.asked.finish = None, worker_pb2.FINISH_REASON_CONTENT_FILTER
        assert await mesh.text(prompt()) == ["a3"] * 3
        mesh.asked.finish = worker_pb2.FINISH_REASON_LENGTH
        assert [await mesh.text(prompt()) for _ in range(2)] == [["a4"] * 3] * 2


async def test_a_long_text_is_given_whole_and_not_kept() -> None:
    async with cached(settings=CacheSettings(max_bytes=16 * 200)) as mesh:
        mesh.asked.text = "x" * 90
        assert [len(await mesh.text(prompt())) for _ in range(2)] == [3, 3]
        assert mesh.asked.times == 2


async def test_of_several_texts_all_have_to_be_given_again_for_a_hit() -> None:
    async with cached() as mesh:
        await mesh.text(prompt("a"))
        exchange = Exchange("CreateCompletion")
        await mesh.text(prompt("a"), exchange=exchange)
        await mesh.text(prompt("b"), exchange=exchange)
        await mesh.text(prompt("a"), exchange=exchange)
        assert exchange.cache == "miss"


async def test_streams_of_tensors_are_asked_each_time() -> None:
    async with cached() as mesh:
        exchange, call = Exchange("ModelStreamInfer"), CallContext(tenant="ours")
        for number in (1, 2):
            answers = mesh.cache.stream(
                mesh.asked.stream, Method.STREAM_INFER, Request(ModelName("m")), tensors(), call, exchange
            )
            assert len([answer async for answer in answers]) == 3
            assert mesh.asked.times == number
        assert exchange.cache == ""
