"""Limits over a whole mesh with two gateway processes: the same at every door, no more than they allow and no less."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.support.commands import done
from tests.support.doors import LIMITED, OK, Told, doors_of
from tests.support.mesh import RunningMesh, running_mesh
from tests.support.slow_calls import cancelled, slow_calls
from tests.support.slow_model import settings_for, slow_model, trust_operator

Door = Callable[[], Awaitable[Told]]
PATIENCE_S = 60.0
AT_ONCE = 20
TOKENS_PER_MIN = 300
MOST_TOKENS = 40
"""Of one chat with the demo model."""


@dataclass(frozen=True, slots=True)
class Limited:
    """A key of a tenant of its own, and its limit."""

    secret: str
    limit_id: str


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    folder = tmp_path_factory.mktemp("limits")
    with running_mesh(folder / "data", "--gateways", "2", "--workers", "1", settings=settings_for(folder)) as running:
        trust_operator(running, folder)
        pushed = running.penstock("models", "push", str(slow_model(folder / "slow")), "--shared-with", "*", "--copies", "1")
        assert pushed.returncode == 0, pushed.stderr
        yield running


async def limited(mesh: RunningMesh, name: str, *words: str) -> Limited:
    secret = (await done(mesh, "keys", "create", name, "--tenant", name)).strip()
    key_id = secret.split("-")[2]
    said = await done(mesh, "limits", "set", "--tenant", name, "--key-id", key_id, *words)
    return Limited(secret, said.split()[1].rstrip(":"))


async def test_every_door_refuses_alike_and_a_limit_that_is_removed_is_gone(mesh: RunningMesh) -> None:
    limit = await limited(mesh, "daily", "--requests-per-day", "6")
    async with doors_of(mesh, limit.secret) as doors:
        every = (doors.grpc, doors.rest, doors.chat, doors.grpc_stream, doors.rest_stream, doors.chat_stream)
        for door in every:  # the last ones may be in the other process' hand for a moment
            await until(door, OK)
        refused = {door.__name__: await door() for door in every}
        assert {told.outcome for told in refused.values()} == {LIMITED}
        for name, told in refused.items():
            assert told.message.startswith("this key may ask 6 times a day, all models together; wait "), name
            if name != "grpc_stream":  # an answer of a stream has a sentence, and nothing else
                assert 0 < (told.retry_after_s or 0) <= 86_400, name
            if "grpc" not in name:
                assert (told.left(), told.headers["x-ratelimit-limit-requests"]) == (0, "6")
        await done(mesh, "limits", "remove", limit.limit_id)
        for door in every:
            await until(door, OK)


async def test_what_is_said_to_be_left_agrees_with_what_is_let_in(mesh: RunningMesh) -> None:
    limit = await limited(mesh, "burst", "--requests-per-s", "0.001", "--burst", str(AT_ONCE))
    async with doors_of(mesh, limit.secret) as first, doors_of(mesh, limit.secret) as second:
        admitted, refused = 0, 0
        async with asyncio.timeout(PATIENCE_S):
            while admitted < AT_ONCE or refused < AT_ONCE:
                for door in (first.rest, first.grpc, second.rest, second.grpc):
                    told = await door()
                    assert told.outcome in (OK, LIMITED), told.outcome
                    admitted += told.outcome == OK
                    refused += told.outcome == LIMITED and admitted >= AT_ONCE
                    if "x-ratelimit-limit-requests" in told.headers:
                        assert told.headers["x-ratelimit-limit-requests"] == str(AT_ONCE)
                        assert 0 <= told.left() < AT_ONCE
        assert admitted == AT_ONCE
        assert (await first.rest()).left() == 0


async def test_tokens_run_out_in_the_midst_of_an_answer_that_is_given_whole(mesh: RunningMesh) -> None:
    limit = await limited(mesh, "tokens", "--tokens-per-min", str(TOKENS_PER_MIN))
    async with doors_of(mesh, limit.secret) as doors:
        answered, began_s = list[Told](), asyncio.get_running_loop().time()
        async with asyncio.timeout(PATIENCE_S):
            while (told := await doors.chat_stream()).outcome == OK:
                assert told.text.rstrip().endswith("data: [DONE]")
                answered.append(told)
        took_s = asyncio.get_running_loop().time() - began_s
        assert told.outcome == LIMITED
        assert told.message.startswith(f"this key may use {TOKENS_PER_MIN} tokens a minute")
        assert told.retry_after_s is not None
        assert 0 < told.retry_after_s <= 60
        used = TOKENS_PER_MIN + TOKENS_PER_MIN / 60 * took_s
        assert used / MOST_TOKENS - 1 <= len(answered) <= used / 10 + 1
        assert answered[0].left("tokens") > answered[-1].left("tokens")
        await until(doors.chat_stream, OK)


async def test_a_place_that_is_given_up_is_the_next_ones(mesh: RunningMesh) -> None:
    limit = await limited(mesh, "places", "--concurrent", "2")
    async with slow_calls(mesh, {"places": limit.secret}) as calls, doors_of(mesh, limit.secret) as doors:
        held = calls.send("places", 2, 30.0, timeout_s=None)
        await until(doors.rest, LIMITED)
        assert (await doors.grpc()).message.startswith("this key may have 2 requests under way at once")
        assert not [each for each in held if each.done()]
        await cancelled(held[0])
        await until(doors.rest, OK)
        assert not held[1].done()
        await cancelled(held[1])
        await until(doors.grpc, OK)


async def until(door: Door, outcome: str) -> Told:
    """Ask until it ends so."""
    told = Told("nothing")
    try:
        async with asyncio.timeout(PATIENCE_S):
            while (told := await door()).outcome != outcome:
                assert told.outcome in (OK, LIMITED), told.outcome
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"{outcome} was expected; this came: {told}") from None
    return told
