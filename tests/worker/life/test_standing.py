"""What the registry withdrew, or whose signer it revoked, answers nobody any more and is not loaded; and says why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import VersionWithdrawn
from runtime.identity import node_id_of
from runtime.ids import DEFAULT_TENANT, Digest, ModelName, ModelVersion
from runtime.manifests import ManifestRefused
from runtime.notices import ModelNotice
from tests.support.manual_clock import settle
from tests.worker.life.test_orders import copy, order
from tests.worker.reconcile_world import SIGNER, S, World, opened_world, running
from worker.life.lifecycle import Copy
from worker.life.orders import Order, plan
from worker.life.standing import objection_to
from worker.types import CopyState

A, V1, D1 = ModelName("a"), ModelVersion("1"), Digest("a-1")
OTHER_SIGNER = b"o" * 32


def notice(*withdrawn: str, revoked: tuple[bytes, ...] = (), generation: int = 1) -> ModelNotice:
    return ModelNotice(
        A,
        DEFAULT_TENANT,
        frozenset(),
        withdrawn=frozenset(Digest(digest) for digest in withdrawn),
        revoked_signers=frozenset(node_id_of(signer) for signer in revoked),
        generation=generation,
    )


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with opened_world() as made:
        yield made


def test_what_is_held_against_a_version() -> None:
    assert objection_to(None, A, V1, D1, node_id_of(SIGNER)) is None
    assert objection_to(notice("a-2"), A, V1, D1, node_id_of(SIGNER)) is None
    assert isinstance(objection_to(notice("a-1"), A, V1, D1), VersionWithdrawn)
    by_number = replace(notice(), withdrawn_versions=frozenset([V1]))
    assert isinstance(objection_to(by_number, A, V1, D1), VersionWithdrawn)
    assert isinstance(objection_to(notice(revoked=(SIGNER,)), A, V1, D1, node_id_of(SIGNER)), ManifestRefused)
    assert objection_to(notice(revoked=(SIGNER,)), A, V1, D1, node_id_of(OTHER_SIGNER)) is None
    assert objection_to(notice(revoked=(SIGNER,)), A, V1, D1) is None, "whose it is will be seen when its manifest is read"


async def test_a_withdrawn_copy_answers_nothing_new_at_once_and_ends_what_it_has(world: World) -> None:
    world.gates["drain a"] = asyncio.Event()
    async with running(world):
        await world.order("a-1", "b-1")
        world.board.hear_model(notice("a-1"))
        await settle()  # the clock stands still: no grace is waited for
        assert set(world.answering) == {("b", "1")}
        assert world.states == {"a:1": S.DRAINING, "b:1": S.READY}, "its requests in flight end"
        assert "withdrawn" in world.reason("a")
        world.gates["drain a"].set()
        await settle()
        assert world.states == {"a:1": S.FAILED, "b:1": S.READY}, "the order stands, so it says why it is not there"
        assert "version 1 of model 'a' was withdrawn" in world.reason("a")
        assert world.folders == {"b-1"}
        await world.clock.advance(600)
        assert [digest for digest, _ in world.attempts] == ["a-1", "b-1"], "nobody tries again"
        await world.order("b-1")
        assert world.states == {"b:1": S.READY}


async def test_a_withdrawn_version_goes_also_where_nothing_replaces_it(world: World) -> None:
    world.failures["a-2"] = [VersionWithdrawn("not today")]
    async with running(world):
        await world.order("a-1")
        await world.order("a-2")
        assert world.states == {"a:1": S.READY, "a:2": S.FAILED}, "the old one answers, because the new one does not"
        world.board.hear_model(notice("a-1"))
        await settle()
        assert world.answering == {}


async def test_a_withdrawn_version_is_not_fetched_and_can_be_asked_for_in_vain(world: World) -> None:
    world.board.hear_model(notice("a-1"))
    async with running(world) as reconciler:
        await world.order("a-1")
        assert (world.states, world.attempts) == ({"a:1": S.FAILED}, [])
        with pytest.raises(VersionWithdrawn):
            await reconciler.local.load(A, V1, D1)
        await world.order("a-1", generation=2)
        assert (world.states, world.attempts) == ({"a:1": S.FAILED}, [])


async def test_a_load_under_way_is_broken_off(world: World) -> None:
    world.gates["a"] = asyncio.Event()
    async with running(world):
        await world.order("a-1")
        assert world.states == {"a:1": S.LOADING}
        world.board.hear_model(notice("a-1"))
        await settle()
        assert (world.states, world.folders, world.answering) == ({"a:1": S.FAILED}, set(), {})


async def test_what_a_revoked_signer_signed_ends_and_is_not_loaded_again(world: World) -> None:
    async with running(world):
        await world.order("a-1")
        world.board.hear_model(notice(revoked=(OTHER_SIGNER,)))
        await settle()
        assert world.states == {"a:1": S.READY}
        world.board.hear_model(notice(revoked=(OTHER_SIGNER, SIGNER), generation=2))
        await settle()
        assert (world.states, world.answering) == ({"a:1": S.FAILED}, {})
        assert f"signer {node_id_of(SIGNER)}" in world.reason("a")
        assert len(world.attempts) == 2, "its manifest was read once more, to see who signed it"
        await world.clock.advance(600)
        assert len(world.attempts) == 2


async def test_a_signer_revoked_while_its_model_loads(world: World) -> None:
    world.gates["a"] = asyncio.Event()
    async with running(world):
        await world.order("a-1")
        world.board.hear_model(notice(revoked=(SIGNER,)))
        await settle()
        assert (world.states, world.folders, world.answering) == ({"a:1": S.FAILED}, set(), {})


orders = st.lists(
    st.builds(order, st.sampled_from("ab"), st.sampled_from(["1", "2"])), max_size=4, unique_by=lambda drawn: drawn.key
)
copies = st.lists(
    st.builds(copy, st.sampled_from(CopyState), st.sampled_from("ab"), st.sampled_from(["1", "2"])),
    max_size=4,
    unique_by=lambda drawn: drawn.key,
)


@given(orders, copies, st.sets(st.tuples(st.sampled_from("ab"), st.sampled_from(["1", "2"]))))
def test_whoever_is_barred_ends_and_nobody_else_does_for_it(
    given_orders: list[Order], held: list[Copy], barred: set[tuple[ModelName, ModelVersion]]
) -> None:
    without = plan(given_orders, held, now_s=0.0, loads_at_once=2)
    steps = plan(given_orders, held, now_s=0.0, loads_at_once=2, barred=barred)
    ready = {each.key for each in held if each.state is S.READY}
    loading = {each.key for each in held if each.state is S.LOADING}
    assert {each.key for each in steps.unloads} == {each.key for each in without.unloads} | (ready & barred)
    assert {each.key for each in steps.withdrawals} == {each.key for each in without.withdrawals} | (loading & barred)
