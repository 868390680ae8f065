"""Which model is meant by "auto"."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.admission import KeyFacts
from gateway.auto import AUTO, AutoModels, AutoUnmatched, Needs, Offer, cheapest, shortcoming
from gateway.offers import Offers
from gateway.refusals import ModelCold, ModelUnknown, unknown_model
from gateway.routes import Routes
from gateway.targets import Targets
from placement.rules import Route, RoutingPolicy, Rule
from placement.types import Copy, CopyState, Granted, Why, Worker
from runtime.ids import KeyId, ModelName, ModelVersion, TenantId, WorkerId
from runtime.notices import STABLE, NoticeBoard
from tests.gateway.fakes import copy_of, notice_of, wish_of, worker_of
from tests.gateway.routed import Routed, routed

KEY = KeyFacts(KeyId("k"), TenantId("t"))
CHAT = Needs(("chat",))
SMALL = Offer("small", "chat", frozenset({"tools"}), 4096, 1.0, 0, 8)
LARGE = Offer("large", "chat", frozenset({"tools", "json"}), 32768, 5.0, 0, 8)


@pytest.mark.parametrize(
    ("offer", "needs", "said"),
    [
        (SMALL, CHAT, ""),
        (SMALL, Needs(("completion", "chat"), frozenset({"tools"}), 4000, 96), ""),
        (SMALL, Needs(("chat",), frozenset(), 4000, 97), "its context has 4096 tokens"),
        (SMALL, Needs(("chat",), frozenset(), 4096), "its context has 4096 tokens"),
        (replace(SMALL, context_tokens=0), Needs(("chat",), frozenset(), 10**9), ""),
        (SMALL, Needs(("embedding",)), "its task is chat"),
        (SMALL, Needs(("chat",), frozenset({"json", "logprobs", "tools"})), "it cannot do json, logprobs"),
        (Offer("new"), CHAT, "nobody holds a copy that says what it can do"),
        (replace(SMALL, withheld="it was withdrawn"), CHAT, "it was withdrawn"),
    ],
)
def test_what_keeps_a_model_from_being_chosen(offer: Offer, needs: Needs, said: str) -> None:
    assert shortcoming(offer, needs) == said


@pytest.mark.parametrize(
    ("offers", "chosen"),
    [
        ([LARGE, SMALL], "small"),
        ([replace(LARGE, cost=0.0), replace(SMALL, cost=9.0)], "small"),
        ([replace(LARGE, cost=1.0), SMALL], "large"),
        ([replace(LARGE, cost=1.0, in_flight=1), SMALL], "small"),
        ([LARGE, replace(SMALL, in_flight=8)], "large"),
        ([LARGE, replace(SMALL, places=0)], "large"),
        ([replace(LARGE, in_flight=8), replace(SMALL, places=0)], "large"),
        ([replace(LARGE, places=0), replace(SMALL, places=0)], "small"),
        ([LARGE, replace(SMALL, preference=1)], "large"),
        ([replace(LARGE, in_flight=99), replace(SMALL, preference=1)], "large"),
        ([replace(SMALL, task="embedding")], None),
        ([], None),
    ],
)
def test_who_is_chosen(offers: list[Offer], chosen: str | None) -> None:
    assert cheapest(offers, CHAT) == chosen


offers = st.lists(
    st.builds(
        Offer,
        st.sampled_from("abcdefgh"),
        st.sampled_from(["chat", "completion", "tensor", ""]),
        st.frozensets(st.sampled_from(["tools", "json"])),
        st.sampled_from([0, 100, 1000]),
        st.sampled_from([0.0, 1.0, 2.0]),
        st.integers(0, 9),
        st.sampled_from([0, 8]),
        st.integers(0, 2),
    ),
    unique_by=lambda offer: offer.model,
    max_size=8,
)
needs = st.builds(
    Needs,
    st.sampled_from([("chat",), ("completion", "chat")]),
    st.frozensets(st.sampled_from(["tools", "json"])),
    st.sampled_from([0, 99, 100, 999]),
    st.sampled_from([0, 1, 500]),
)


@given(offers, needs, st.randoms(use_true_random=False))
def test_who_is_chosen_can_do_it_whatever_the_order_and_nobody_better_is_left(
    drawn: list[Offer], needed: Needs, rng: object
) -> None:
    chosen = cheapest(drawn, needed)
    able = [each for each in drawn if not shortcoming(each, needed)]
    assert chosen == cheapest(drawn[::-1], needed)
    if chosen is None:
        assert not able
        return
    best = next(each for each in able if each.model == chosen)
    assert best.preference == min(each.preference for each in able)
    peers = [each for each in able if each.preference == best.preference and each.places and each.in_flight < each.places]
    if peers:
        assert best in peers
        assert (best.cost or 99) == min(each.cost or 99 for each in peers)


def chat(model: str, version: str = "1", cost: float = 0.0, state: CopyState = CopyState.READY, **more: object) -> Copy:
    return replace(copy_of(model, version, state, task="chat"), cost_per_million_tokens=cost, **more)  # type: ignore[arg-type]


def auto_over(mesh: Routed, board: NoticeBoard | None = None) -> AutoModels:
    routes = Routes(mesh.fleet, Route())
    return AutoModels(Offers(Targets(board, mesh.fleet, enforced=board is not None, routes=routes), mesh.fleet, routes))


def board_of(**tenants: str) -> NoticeBoard:
    board = NoticeBoard()
    board.synced = True
    for model, tenant in tenants.items():
        board.hear_model(notice_of(model, tenant))
    return board


FLEET: tuple[Worker, ...] = (worker_of("a", chat("dear", cost=3.0), chat("cheap", cost=1.0)), worker_of("b", copy_of("digits")))


async def test_the_cheapest_of_the_fleet_is_chosen_and_other_names_stay() -> None:
    async with routed() as mesh:
        mesh.tell(*FLEET)
        auto = auto_over(mesh)
        assert auto.chosen(KEY, AUTO, CHAT) == "cheap"
        assert auto.chosen(KEY, "dear", CHAT) == "dear"
        assert AutoModels().chosen(KEY, AUTO, CHAT) == AUTO


async def test_only_what_the_key_may_have_is_chosen_or_told_of() -> None:
    async with routed() as mesh:
        mesh.tell(*FLEET)
        auto = auto_over(mesh, board_of(dear="t", cheap="another", digits="t"))
        assert auto.chosen(KEY, AUTO, CHAT) == "dear"
        narrow = replace(KEY, allowed_models=frozenset({"digits", "cheap"}))
        with pytest.raises(AutoUnmatched) as refused:
            auto.chosen(narrow, AUTO, CHAT)
        assert (
            refused.value.message == "'auto' finds no model for chat: digits: its task is tensor; name a model, or ask for less"
        )


async def test_rules_say_among_whom_and_whom_first() -> None:
    async with routed() as mesh:
        mesh.tell(*FLEET, policy=RoutingPolicy(1, (Rule(models=("auto",), auto_models=("d*",)),)))
        auto = auto_over(mesh)
        assert auto.chosen(KEY, AUTO, CHAT) == "dear"
        mesh.tell(*FLEET, policy=RoutingPolicy(2, (Rule(tenants=("t",), auto_models=("dear", "*")),)))
        assert auto.chosen(KEY, AUTO, CHAT) == "dear"
        assert auto.chosen(replace(KEY, tenant=TenantId("u")), AUTO, CHAT) == "cheap"


async def test_a_published_model_of_that_name_is_meant() -> None:
    async with routed() as mesh:
        mesh.tell(*FLEET)
        assert auto_over(mesh, board_of(auto="t", cheap="t")).chosen(KEY, AUTO, CHAT) == AUTO
        assert auto_over(mesh, board_of(auto="another", cheap="t")).chosen(KEY, AUTO, CHAT) == "cheap"
        mesh.tell(*FLEET, worker_of("c", chat(AUTO)))
        assert auto_over(mesh).chosen(KEY, AUTO, CHAT) == AUTO


async def test_who_is_busy_gives_way_among_equals_and_who_is_full_altogether() -> None:
    async with routed() as mesh:
        mesh.tell(worker_of("a", chat("x", cost=1.0), max_in_flight=2), worker_of("b", chat("y", cost=1.0), max_in_flight=2))
        auto, seat = auto_over(mesh), mesh.fleet.view.seats[WorkerId("a")]
        assert auto.chosen(KEY, AUTO, CHAT) == "x"
        granted = Granted(WorkerId("a"), ModelVersion("1"), Why.SCORE, 0.0, seat.slot, seat.tenure, model=ModelName("x"))
        mesh.fleet.state.reserve(granted)
        assert auto.chosen(KEY, AUTO, CHAT) == "y"


async def test_the_version_that_requests_get_is_the_one_that_counts() -> None:
    board = NoticeBoard()
    board.synced = True
    board.hear_model(notice_of("m", aliases={STABLE: ("1", 0)}))
    board.hear_model(notice_of("n", aliases={STABLE: ("1", 0)}, withdrawn=["1"]))
    tools = frozenset({"tools"})
    workers = [worker_of("a", chat("m", "1"), chat("m", "2", capabilities=tools)), worker_of("b", chat("n", "2"))]
    async with routed() as mesh:
        mesh.tell(*workers)
        assert auto_over(mesh, board).chosen(KEY, AUTO, CHAT) == "m"
        with pytest.raises(AutoUnmatched, match=r"m: it cannot do tools; n: Request for unknown model: 'n' version 1 is not"):
            auto_over(mesh, board).chosen(KEY, AUTO, Needs(("chat",), tools))


async def test_where_copies_say_different_things_the_least_is_taken() -> None:
    copies = (
        chat("m", capabilities=frozenset({"tools", "json"}), context_tokens=100),
        chat("m", capabilities=frozenset({"json"}), context_tokens=50),
        chat("m", state=CopyState.FAILED),
    )
    async with routed() as mesh:
        mesh.tell(*(worker_of(who, copy) for who, copy in zip("abc", copies, strict=True)))
        auto = auto_over(mesh)
        assert auto.chosen(KEY, AUTO, Needs(("chat",), frozenset({"json"}), 20, 30)) == "m"
        for needed in (Needs(("chat",), frozenset({"tools"})), Needs(("chat",), frozenset(), 20, 31)):
            with pytest.raises(AutoUnmatched):
                auto.chosen(KEY, AUTO, needed)


async def test_what_is_being_loaded_will_do_where_nothing_is_ready() -> None:
    loading = worker_of("a", chat("slow", cost=1.0, state=CopyState.LOADING))
    async with routed() as mesh:
        mesh.tell(loading, wishes=(wish_of("slow"), wish_of("never-seen")))
        auto = auto_over(mesh)
        assert auto.chosen(KEY, AUTO, CHAT) == "slow"
        mesh.tell(loading, worker_of("b", chat("dear", cost=9.0)))
        assert auto.chosen(KEY, AUTO, CHAT) == "dear"


async def test_a_refusal_lists_some_and_says_how_many_more() -> None:
    async with routed() as mesh:
        auto = auto_over(mesh)
        with pytest.raises(ModelCold):
            auto.chosen(KEY, AUTO, CHAT)
        mesh.tell()
        with pytest.raises(AutoUnmatched, match="this key sees none that may be chosen"):
            auto.chosen(KEY, AUTO, CHAT)
        mesh.tell(worker_of("a", *(copy_of(f"m{number:02}") for number in range(20)), chat("z", context_tokens=10)))
        with pytest.raises(AutoUnmatched) as refused:
            auto.chosen(KEY, AUTO, Needs(("chat", "completion"), frozenset({"json"}), 90, 9))
        assert refused.value.message.startswith(
            "'auto' finds no model for chat or completion, json, 99 tokens: z: it cannot do"
        )
        assert "m06: its task is tensor; and 13 more" in refused.value.message


def test_for_tensors_no_model_is_chosen() -> None:
    refused = unknown_model(AUTO)
    assert isinstance(refused, ModelUnknown)
    assert refused.message == "Request for unknown model: 'auto' is not found: a model is chosen for text alone; name one"
