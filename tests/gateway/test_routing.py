"""Where requests go, and where they go when that failed."""

from __future__ import annotations

import asyncio

import pytest

from gateway.links.types import CallContext, LinkLoad, LinkLost, Method
from gateway.refusals import FleetFull, ModelCold, ModelUnknown, WorkersUnreachable
from placement.routing.retry_budget import RetryBudget
from placement.types import CopyState, Request
from runtime.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    PenstockError,
    ResourceExhausted,
    Unavailable,
    UpstreamBusy,
    UpstreamUnavailable,
)
from runtime.ids import ModelName, ModelVersion
from tests.gateway.fakes import FakeLink, copy_of, worker_of
from tests.gateway.routed import CALL, M, pair, routed


@pytest.mark.parametrize("error", [LinkLost("gone"), Unavailable("draining"), ResourceExhausted("full"), NotFound("unloaded")])
async def test_a_failure_before_the_answer_is_retried_elsewhere(error: PenstockError) -> None:
    links = {"a": FakeLink("127.0.0.1:1", [error]), "b": FakeLink("127.0.0.1:1")}
    async with routed(*pair(), links=links) as mesh:
        for _ in range(6):
            assert await mesh.router.infer(M, b"x", CALL) == b"x"
        assert mesh.in_flight() == {"a": 0, "b": 0}
        assert links["b"].calls == 6
        assert (links["a"].calls == 1) == (error.code.name == "UNAVAILABLE")  # a way that failed is inhibited


async def test_what_the_request_itself_got_wrong_is_not_retried() -> None:
    links = {each: FakeLink("127.0.0.1:1", [InvalidArgument("shape")]) for each in ("a", "b")}
    async with routed(*pair(), links=links) as mesh:
        with pytest.raises(InvalidArgument):
            await mesh.router.infer(M, b"x", CALL)
        assert links["a"].calls + links["b"].calls == 1


async def test_an_upstream_that_refuses_is_not_asked_again_through_another_worker() -> None:
    links = {each: FakeLink("127.0.0.1:1", [UpstreamBusy("busy", retry_after_s=7)]) for each in ("a", "b")}
    async with routed(*pair(), links=links) as mesh:
        with pytest.raises(UpstreamBusy) as caught:
            await mesh.router.infer(M, b"x", CALL)
        assert caught.value.retry_after_s == 7
        assert links["a"].calls + links["b"].calls == 1


async def test_an_upstream_that_fails_does_not_inhibit_the_worker_before_it() -> None:
    links = {"a": FakeLink("127.0.0.1:1", [UpstreamUnavailable("502")]), "b": FakeLink("127.0.0.1:1")}
    async with routed(*pair(), links=links) as mesh:
        for _ in range(24):
            assert await mesh.router.infer(M, b"x", CALL) == b"x"
        assert links["a"].calls > 1


async def test_full_everywhere_is_shed_with_what_the_last_one_said() -> None:
    links = {each: FakeLink("127.0.0.1:1", [ResourceExhausted("full", retry_after_s=0.5)]) for each in ("a", "b")}
    async with routed(*pair(), links=links) as mesh:
        with pytest.raises(ResourceExhausted) as caught:
            await mesh.router.infer(M, b"x", CALL)
        assert caught.value.retry_after_s == 0.5
        assert (links["a"].calls, links["b"].calls) == (1, 1)


async def test_reservations_full_is_shed_at_once() -> None:
    gate = asyncio.Event()
    links = {"a": FakeLink("127.0.0.1:1", gate=gate)}
    async with routed(worker_of("a", copy_of("m"), max_in_flight=1), links=links) as mesh:
        first = asyncio.create_task(mesh.router.infer(M, b"x", CALL))
        await asyncio.sleep(0)
        with pytest.raises(FleetFull) as caught:
            await mesh.router.infer(M, b"y", CALL)
        assert caught.value.retry_after_s is not None
        gate.set()
        assert await first == b"x"


async def test_three_attempts_at_most() -> None:
    workers = [worker_of(each, copy_of("m")) for each in "abcd"]
    links = {each: FakeLink("127.0.0.1:1", [LinkLost("gone")]) for each in "abcd"}
    async with routed(*workers, links=links) as mesh:
        with pytest.raises(LinkLost):
            await mesh.router.infer(M, b"x", CALL)
        assert sum(link.calls for link in links.values()) == 3


async def test_an_empty_budget_means_no_retry() -> None:
    links = {each: FakeLink("127.0.0.1:1", [Unavailable("away")]) for each in ("a", "b")}
    async with routed(*pair(), links=links, budget=RetryBudget(0.0, 0.0)) as mesh:
        with pytest.raises(Unavailable):
            await mesh.router.infer(M, b"x", CALL)
        assert links["a"].calls + links["b"].calls == 1
        assert mesh.counted("penstock_gateway_retries_total", reason="UNAVAILABLE", granted="no") == 1


async def test_what_is_lost_with_its_worker_goes_elsewhere_without_the_budget_once() -> None:
    """Hundreds may be lost at one moment: a share of the requests of the last seconds would not be enough for them."""
    gate = asyncio.Event()
    lost = FakeLink("127.0.0.1:1", [LinkLost("killed")], gate=gate)
    workers = [worker_of(each, copy_of("m"), max_in_flight=2000) for each in "ab"]
    async with routed(*workers, links={"a": lost}, budget=RetryBudget(0.0, 0.0)) as mesh:
        calls = [asyncio.create_task(mesh.router.infer(M, b"x", CALL)) for _ in range(1000)]
        async with asyncio.timeout(10):
            while lost.in_flight < 500:
                await asyncio.sleep(0)
        gate.set()
        assert await asyncio.gather(*calls) == [b"x"] * 1000
    links = {each: FakeLink("127.0.0.1:1", [LinkLost("killed")]) for each in "abc"}
    async with routed(*(worker_of(each, copy_of("m")) for each in "abc"), links=links, budget=RetryBudget(0.0, 0.0)) as mesh:
        with pytest.raises(LinkLost):
            await mesh.router.infer(M, b"x", CALL)
        assert sum(link.calls for link in links.values()) == 2


async def test_an_unknown_model_is_refused_in_tritons_words() -> None:
    async with routed(*pair()) as mesh:
        with pytest.raises(ModelUnknown, match=r"^Request for unknown model: 'x' is not found$"):
            await mesh.router.infer(Request(ModelName("x")), b"", CALL)
        with pytest.raises(ModelUnknown, match=r"^Request for unknown model: 'm' version 7 is not found$"):
            await mesh.router.infer(Request(ModelName("m"), ModelVersion("7")), b"", CALL)


async def test_a_model_on_its_way_is_waited_for() -> None:
    async with routed() as mesh:
        await mesh.told(worker_of("a"), wishes=("m",))
        waiting = asyncio.create_task(mesh.router.infer(M, b"x", CALL))
        await asyncio.sleep(0.01)
        await mesh.told(worker_of("a", copy_of("m", state=CopyState.LOADING)), wishes=("m",))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await mesh.told(worker_of("a", copy_of("m")), wishes=("m",))
        assert await waiting == b"x"
        assert mesh.links["a"].versions == ["1"]


async def test_a_gateway_that_knows_nothing_yet_waits_for_the_scheduler() -> None:
    async with routed() as mesh:
        waiting = asyncio.create_task(mesh.router.infer(M, b"x", CALL))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        await mesh.told(*pair())
        assert await waiting == b"x"


async def test_a_copy_that_failed_to_load_is_told_of_with_its_reason() -> None:
    async with routed(worker_of("a", copy_of("m", state=CopyState.FAILED, reason="bad graph")), cold_wait_s=0.05) as mesh:
        with pytest.raises(ModelCold, match="bad graph"):
            await mesh.router.infer(M, b"x", CALL)


async def test_the_callers_deadline_ends_the_wait() -> None:
    async with routed(worker_of("a", copy_of("m", state=CopyState.LOADING))) as mesh:
        deadline_s = asyncio.get_running_loop().time() + 0.05
        with pytest.raises(DeadlineExceeded, match="LOADING"):
            await mesh.router.infer(M, b"x", CallContext(deadline_s=deadline_s))


async def test_a_link_that_is_still_connecting_is_waited_for() -> None:
    link = FakeLink("127.0.0.1:1")
    link.start = lambda: None  # type: ignore[method-assign]
    async with routed(worker_of("a", copy_of("m")), links={"a": link}) as mesh:
        waiting = asyncio.create_task(mesh.router.infer(M, b"x", CALL))
        await asyncio.sleep(0.02)
        assert not waiting.done()
        link.connected.set()
        assert await waiting == b"x"


async def test_a_connected_worker_is_preferred_to_one_that_is_not() -> None:
    lost = FakeLink("127.0.0.1:1", last_failure="refused")
    lost.start = lambda: None  # type: ignore[method-assign]
    async with routed(*pair(), links={"a": lost}) as mesh:
        for _ in range(4):
            assert await mesh.router.infer(M, b"x", CALL) == b"x"
        assert lost.calls == 0


async def test_a_draining_worker_is_left_alone_and_does_not_make_anyone_spin() -> None:
    links = {"a": FakeLink("127.0.0.1:1", load=LinkLoad(draining=True))}
    async with routed(worker_of("a", copy_of("m")), links=links) as mesh:
        with pytest.raises(WorkersUnreachable):
            await mesh.router.infer(M, b"x", CALL)
    links = {"a": FakeLink("127.0.0.1:1", load=LinkLoad(draining=True)), "b": FakeLink("127.0.0.1:1")}
    async with routed(*pair(), links=links) as mesh:
        for _ in range(4):
            await mesh.router.infer(M, b"x", CALL)
        assert links["a"].calls == 0


async def test_cancelling_gives_the_reservation_back() -> None:
    links = {"a": FakeLink("127.0.0.1:1", gate=asyncio.Event())}
    async with routed(worker_of("a", copy_of("m")), links=links) as mesh:
        call = asyncio.create_task(mesh.router.infer(M, b"x", CALL))
        await asyncio.sleep(0.01)
        assert mesh.in_flight() == {"a": 1}
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        assert mesh.in_flight() == {"a": 0}


async def test_a_stream_is_retried_before_its_first_answer_only() -> None:
    links = {"a": FakeLink("127.0.0.1:1", [LinkLost("gone")]), "b": FakeLink("127.0.0.1:1")}
    async with routed(*pair(), links=links) as mesh:
        for _ in range(2):
            answers = [answer async for answer in mesh.router.stream(Method.GENERATE, M, b"x", CALL)]
            assert answers == [b"x0", b"x1", b"x2"]
        assert mesh.in_flight() == {"a": 0, "b": 0}
    links = {each: FakeLink("127.0.0.1:1", fails_after=2) for each in ("a", "b")}
    async with routed(*pair(), links=links) as mesh:
        lost = mesh.router.stream(Method.GENERATE, M, b"x", CALL)
        assert [await anext(lost), await anext(lost)] == [b"x0", b"x1"]
        with pytest.raises(Unavailable, match="in the middle"):
            await anext(lost)
        assert links["a"].calls + links["b"].calls == 1
        assert mesh.in_flight() == {"a": 0, "b": 0}


async def test_leaving_a_stream_early_gives_the_reservation_back() -> None:
    async with routed(worker_of("a", copy_of("m"))) as mesh:
        answers = mesh.router.stream(Method.GENERATE, M, b"x", CALL)
        assert await anext(answers) == b"x0"
        assert mesh.in_flight() == {"a": 1}
        await answers.aclose()
        assert mesh.in_flight() == {"a": 0}


async def test_warm_traffic_goes_on_without_the_scheduler() -> None:
    async with routed(*pair()) as mesh:
        mesh.source.lose()
        async with asyncio.timeout(5):
            while not mesh.fleet.stale:
                await asyncio.sleep(0)
        assert await mesh.router.infer(M, b"x", CALL) == b"x"
        async with asyncio.timeout(5):
            await mesh.told(worker_of("b", copy_of("m")))
        assert not mesh.fleet.stale
        assert set(mesh.fleet.links) == {"b"}


async def test_links_follow_the_view() -> None:
    async with routed(*pair()) as mesh:
        first = mesh.links["a"]
        mesh.links.clear()
        await mesh.told(worker_of("a", copy_of("m"), address="127.0.0.1:2"))
        assert mesh.links["a"] is not first
        async with asyncio.timeout(5):
            while not first.closed:
                await asyncio.sleep(0)
        assert set(mesh.fleet.links) == {"a"}
