"""Models that stand in for one that does not answer: for which failures, for whom, in which order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admission import KeyFacts, RateLimited
from gateway.exchange import Exchange
from gateway.fallbacks import MAX_HOPS, cause_of
from gateway.links.types import CallContext, LinkLost, Method, WorkerBusy
from gateway.refusals import FleetFull, ModelCold, ModelUnknown, RouteDenied
from gateway.versions import VersionGone
from placement.rules import Cause, Route, Rule
from placement.types import Request
from runtime.errors import (
    CapacityTooLate,
    ContextExceeded,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    PenstockError,
    Unavailable,
    Unimplemented,
    UpstreamBusy,
    UpstreamUnavailable,
)
from runtime.ids import KeyId, ModelName, ModelVersion, TenantId, WorkerId
from runtime.notices import STABLE, NoticeBoard
from tests.gateway.detoured import KEY, Detoured, detoured, exchange_of
from tests.gateway.fakes import FakeLink, copy_of, notice_of, worker_of
from tests.gateway.routed import CALL, M
from tests.support.waiting import eventually

WM, WN, WO = worker_of("wm", copy_of("m")), worker_of("wn", copy_of("n")), worker_of("wo", copy_of("o"))
TO_N = Rule("m's", models=("m",), fallbacks=("n",))
TO_N_AND_O = replace(TO_N, fallbacks=("n", "o"))


def failing(*errors: PenstockError) -> FakeLink:
    return FakeLink("127.0.0.1:1", list(errors))


async def answered(mesh: Detoured, exchange: Exchange, request: Request = M) -> str:
    """Who answered."""
    assert await mesh.dispatch.infer(request, b"x", CALL, exchange) == b"x"
    return exchange.worker_id


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (Unavailable("away"), Cause.FAILURE),
        (LinkLost("broke"), Cause.FAILURE),
        (ModelCold("loading"), Cause.FAILURE),
        (UpstreamUnavailable("503"), Cause.FAILURE),
        (Internal("a bug"), Cause.FAILURE),
        (DataLoss("rotten"), Cause.FAILURE),
        (NotFound("unloaded"), Cause.FAILURE),
        (FailedPrecondition("the upstream's key is refused"), Cause.FAILURE),
        (DeadlineExceeded("the upstream is silent"), Cause.FAILURE),
        (FleetFull("full"), Cause.OVERLOAD),
        (WorkerBusy("full"), Cause.OVERLOAD),
        (UpstreamBusy("429"), Cause.OVERLOAD),
        (CapacityTooLate("a long queue"), Cause.OVERLOAD),
        (ContextExceeded("9000 tokens"), Cause.CONTEXT),
        (InvalidArgument("shape"), None),
        (Unimplemented("decoupled"), None),
        (RateLimited("too often"), None),
        (ModelUnknown("a slip of the pen"), None),
        (VersionGone("withdrawn"), None),
        (RouteDenied("a rule says so"), None),
    ],
)
def test_what_another_model_may_make_good(error: PenstockError, cause: Cause | None) -> None:
    assert cause_of(error) is cause


@pytest.mark.parametrize("error", [Internal("a bug"), UpstreamBusy("429"), ContextExceeded("9000 tokens")])
async def test_another_model_answers_with_the_payload_as_it_was(error: PenstockError) -> None:
    async with detoured(WM, WN, rules=(TO_N,), links={"wm": failing(error)}) as mesh:
        assert await answered(mesh, mesh.exchange) == "wn"
        assert (mesh.exchange.model, mesh.exchange.fell_back, mesh.exchange.attempts) == ("n", "m", 2)
        cause = cause_of(error)
        assert cause is not None
        assert mesh.fell_back("m", "n", cause.value) == 1


@pytest.mark.parametrize("error", [InvalidArgument("shape"), Unimplemented("decoupled")])
async def test_what_the_request_got_wrong_stays_its_answer(error: PenstockError) -> None:
    async with detoured(WM, WN, rules=(TO_N,), links={"wm": failing(error)}) as mesh:
        with pytest.raises(type(error)):
            await answered(mesh, mesh.exchange)
        assert mesh.links["wn"].calls == 0


@pytest.mark.parametrize(("on", "falls_back"), [(Cause.FAILURE, True), (Cause.OVERLOAD, False), (Cause.CONTEXT, False)])
async def test_only_causes_that_the_rule_names_count(on: Cause, falls_back: bool) -> None:
    rule = replace(TO_N, fallback_on=frozenset({on}))
    async with detoured(WM, WN, rules=(rule,), links={"wm": failing(Internal("a bug"))}) as mesh:
        if falls_back:
            assert await answered(mesh, mesh.exchange) == "wn"
        else:
            with pytest.raises(Internal):
                await answered(mesh, mesh.exchange)
            assert mesh.exchange.fell_back == ""


async def test_they_are_asked_in_order_and_the_models_own_failure_is_the_answer_where_all_fail() -> None:
    links = {"wm": failing(Internal("of m")), "wn": failing(Unavailable("of n")), "wo": failing()}
    async with detoured(WM, WN, WO, rules=(TO_N_AND_O,), links=links) as mesh:
        assert await answered(mesh, mesh.exchange) == "wo"
        assert links["wn"].calls == 1
        links["wo"].script = [Unavailable("of o")]
        exchange = exchange_of()
        with pytest.raises(Internal, match="of m"):
            await answered(mesh, exchange)
        assert (exchange.fell_back, exchange.model) == ("", "o")


async def test_a_stand_in_that_cannot_take_the_request_ends_the_search() -> None:
    links = {"wm": failing(Internal("of m")), "wn": failing(InvalidArgument("another shape"))}
    async with detoured(WM, WN, WO, rules=(TO_N_AND_O,), links=links) as mesh:
        with pytest.raises(Internal, match="of m"):
            await answered(mesh, mesh.exchange)
        assert mesh.links["wo"].calls == 0


async def test_who_may_not_have_a_stand_in_does_not_get_it() -> None:
    board = NoticeBoard()
    board.synced = True
    for model, tenant in (("m", "t"), ("n", "another"), ("o", "t")):
        board.hear_model(notice_of(model, tenant))
    async with detoured(WM, WN, WO, rules=(TO_N_AND_O,), links={"wm": failing(Internal("a bug"))}, board=board) as mesh:
        assert await answered(mesh, exchange_of()) == "wo"
        narrow = KeyFacts(KeyId("k"), TenantId("t"), allowed_models=frozenset({"m", "n"}))
        with pytest.raises(Internal):
            await answered(mesh, exchange_of(narrow))
        with pytest.raises(Internal):
            await answered(mesh, Exchange("ModelInfer"))  # of nobody that is known
        assert mesh.links["wn"].calls == 0


async def test_versions_and_aliases_may_stand_in_and_withdrawn_ones_do_not() -> None:
    board = NoticeBoard()
    board.synced = True
    aliases = {STABLE: ("3", 0), "before": ("1", 0)}
    board.hear_model(notice_of("m", aliases=aliases, withdrawn=["2"]))
    rule = replace(TO_N, fallbacks=("m@3", "m@2", "absent", "m@before"))
    workers = [worker_of(f"w{number}", copy_of("m", number)) for number in "123"]
    async with detoured(*workers, rules=(rule,), links={"w3": failing(Internal("a bug"))}, board=board) as mesh:
        assert await answered(mesh, mesh.exchange, Request(ModelName("m"), ModelVersion("3"))) == "w1"
        assert (mesh.exchange.version, mesh.links["w3"].calls, mesh.links["w2"].calls) == ("1", 1, 0)


async def test_a_full_model_is_left_at_once_and_counted_as_wanted() -> None:
    full = replace(WM, max_in_flight=1)
    links = {"wm": FakeLink("127.0.0.1:1", gate=asyncio.Event())}
    async with detoured(full, WN, rules=(TO_N,), links=links) as mesh:
        holding = asyncio.create_task(mesh.dispatch.infer(M, b"x", CALL, exchange_of()))
        await eventually(lambda: links["wm"].calls == 1)
        assert await answered(mesh, mesh.exchange) == "wn"
        assert (links["wm"].calls, mesh.fell_back("m", "n", "overload")) == (1, 1)
        counts = {model: counts for (_, model, _), counts in mesh.mesh.router.ledger.drain(0.0).items()}
        assert (counts[ModelName("m")].refused, counts[ModelName("m")].requests) == (1, 2)
        holding.cancel()
        await asyncio.gather(holding, return_exceptions=True)


@pytest.mark.parametrize(("heard_before_s", "who"), [(0.0, "wn"), (60.0, "wm")])
async def test_a_model_that_others_fill_is_left_while_that_is_known(heard_before_s: float, who: str) -> None:
    async with detoured(replace(WM, max_in_flight=4), WN, rules=(TO_N,)) as mesh:
        fleet, now_s = mesh.mesh.fleet, asyncio.get_running_loop().time()
        heard_at_s = now_s - heard_before_s
        fleet.state.hear(fleet.view, WorkerId("wm"), in_flight=4, queued_rows=0, now_s=heard_at_s)
        assert await answered(mesh, mesh.exchange) == who


async def test_where_the_stand_ins_are_full_too_the_model_itself_is_asked() -> None:
    full = [replace(each, max_in_flight=1) for each in (WM, WN)]
    links = {who: FakeLink("127.0.0.1:1", gate=asyncio.Event()) for who in ("wm", "wn")}
    async with detoured(*full, rules=(TO_N,), links=links) as mesh:
        asking = [
            asyncio.create_task(mesh.dispatch.infer(replace(M, model=ModelName(each)), b"x", CALL, exchange_of()))
            for each in "mn"
        ]
        await eventually(lambda: all(link.calls == 1 for link in links.values()))
        with pytest.raises(FleetFull, match="'m'"):
            await answered(mesh, mesh.exchange)
        for each in asking:
            each.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


async def test_a_model_that_is_not_loaded_is_not_waited_for_where_another_has_room() -> None:
    async with detoured(WN, rules=(TO_N,), wishes=("m",), cold_wait_s=60) as mesh:
        assert await asyncio.wait_for(answered(mesh, mesh.exchange), 10) == "wn"
        counts = {model: counts for (_, model, _), counts in mesh.mesh.router.ledger.drain(0.0).items()}
        assert counts[ModelName("m")].missed == 1


async def test_the_model_itself_is_asked_where_who_was_asked_for_it_fails() -> None:
    links = {"wm": FakeLink("127.0.0.1:1", gate=asyncio.Event()), "wn": failing(Internal("of n"))}
    async with detoured(replace(WM, max_in_flight=1), WN, rules=(TO_N,), links=links) as mesh:
        holding = asyncio.create_task(mesh.dispatch.infer(M, b"x", CALL, exchange_of()))
        await eventually(lambda: links["wm"].calls == 1)
        with pytest.raises(FleetFull, match="'m'"):  # what the model said, not who stood in for it
            await answered(mesh, mesh.exchange)
        assert (links["wn"].calls, mesh.exchange.fell_back) == (1, "")
        holding.cancel()
        await asyncio.gather(holding, return_exceptions=True)


async def test_a_name_that_nobody_serves_is_not_made_good() -> None:
    async with detoured(WN, rules=(Rule(fallbacks=("n",)),)) as mesh:
        with pytest.raises(ModelUnknown):
            await answered(mesh, mesh.exchange, Request(ModelName("slip-of-the-pen")))
        assert mesh.links["wn"].calls == 0


async def test_past_the_callers_deadline_nobody_is_asked() -> None:
    async with detoured(WM, WN, rules=(TO_N,), links={"wm": failing(Internal("a bug"))}) as mesh:
        call = CallContext(deadline_s=asyncio.get_running_loop().time() - 1)
        with pytest.raises(Internal):
            await mesh.dispatch.infer(M, b"x", call, mesh.exchange)
        assert mesh.links["wn"].calls == 0


async def test_a_sequence_stays_with_its_state() -> None:
    async with detoured(WM, WN, rules=(TO_N,), links={"wm": failing(Internal("a bug"))}) as mesh:
        request = replace(M, session_key="t/m/1", sticky=True)
        with pytest.raises(Internal):
            await mesh.dispatch.infer(request, b"x", CALL, mesh.exchange)
        with pytest.raises(Internal):
            await anext(mesh.dispatch.stream(Method.STREAM_INFER, request, b"x", CALL, mesh.exchange))
        assert mesh.links["wn"].calls == 0


async def streamed(mesh: Detoured, method: Method = Method.GENERATE, request: Request = M) -> list[bytes]:
    async with aclosing(mesh.dispatch.stream(method, request, b"x", CALL, mesh.exchange)) as answers:
        return [answer async for answer in answers]


async def test_a_stream_falls_back_before_its_first_answer() -> None:
    text = worker_of("wn", copy_of("n", task="chat"))
    async with detoured(WM, text, rules=(TO_N,), links={"wm": failing(Internal("a bug"))}) as mesh:
        request = replace(M, session_key="t/a talk")
        assert await streamed(mesh, request=request) == [b"x0", b"x1", b"x2"]
        assert (mesh.exchange.fell_back, mesh.exchange.model) == ("m", "n")


async def test_a_stream_that_has_begun_does_not() -> None:
    text = worker_of("wn", copy_of("n", task="chat"))
    async with detoured(WM, text, rules=(TO_N,), links={"wm": FakeLink("127.0.0.1:1", fails_after=1)}) as mesh:
        with pytest.raises(Unavailable, match="in the middle"):
            await streamed(mesh, Method.STREAM_INFER)
        assert (mesh.links["wn"].calls, mesh.exchange.fell_back) == (0, "")


async def test_a_prompt_is_not_for_a_model_that_takes_tensors() -> None:
    text = worker_of("wo", copy_of("o", task="completion"))
    async with detoured(WM, WN, text, rules=(TO_N_AND_O,), links={"wm": failing(Internal("a bug"))}) as mesh:
        assert len(await streamed(mesh)) == 3
        assert (mesh.exchange.model, mesh.links["wn"].calls) == ("o", 0)


async def test_without_rules_that_name_any_the_router_is_asked_at_once() -> None:
    async with detoured(WM, WN, rules=(Rule(share=2),), links={"wm": failing(Internal("a bug"))}) as mesh:
        with pytest.raises(Internal):
            await answered(mesh, mesh.exchange)
        stream = mesh.dispatch.stream(Method.GENERATE, M, b"x", CALL, mesh.exchange)
        assert stream.__qualname__ == "Router.stream"  # type: ignore[attr-defined]
        await stream.aclose()


names = st.sampled_from(["m", "m@1", "n", "n@2", "o", "p", "q", "r", "s@canary"])


@given(
    st.lists(names, max_size=8, unique=True),
    st.frozensets(st.sampled_from("mnopqrs"), min_size=1),
    st.frozensets(st.sampled_from("nopqrs")),
)
def test_who_is_listed_is_allowed_known_in_order_once_and_not_the_model_itself(
    fallbacks: Sequence[str], allowed: frozenset[str], gone: frozenset[str]
) -> None:
    async def listed() -> list[Request]:
        board = NoticeBoard()
        board.synced = True
        for model in {*"mnopqrs"} - gone:
            board.hear_model(notice_of(model, aliases={"canary": ("2", 0)}))
        async with detoured(rules=(), board=board) as mesh:
            detours = mesh.dispatch._detours
            assert detours is not None
            key, route = replace(KEY, allowed_models=allowed), Route(fallbacks=tuple(fallbacks))
            return list(detours.fallbacks.listed(Method.INFER, M, route, key))

    expected: list[tuple[str, str]] = []
    for model, _, version in (each.partition("@") for each in fallbacks):
        target = (model, "2" if version == "canary" else version)
        if model in allowed - gone and target != ("m", "") and target not in expected:
            expected.append(target)
    assert [(each.model, each.version) for each in asyncio.run(listed())] == expected[:MAX_HOPS]


async def test_a_model_that_is_known_and_was_unloaded_is_made_good() -> None:
    board = NoticeBoard()
    board.synced = True
    for model in ("m", "n"):
        board.hear_model(notice_of(model))
    async with detoured(WN, rules=(TO_N,), board=board) as mesh:
        assert await answered(mesh, mesh.exchange) == "wn"
        assert mesh.fell_back("m", "n", "failure") == 1
