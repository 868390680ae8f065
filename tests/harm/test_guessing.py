"""Somebody tries key after key: it is made slow for that address alone, it tells nothing, and it costs nobody anything."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import httpx
import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from gateway.admission import KeyFacts, KeyRefused
from gateway.callers import Callers
from gateway.guesses import GUESSES, MAX_ADDRESSES, Guesses
from gateway.keys import KeyLimits, Keys
from gateway.metrics import GatewayMetrics
from gateway.whereabouts import caller_address
from runtime.clock import SystemClock
from runtime.ids import KeyId, TenantId
from tests.gateway.fakes import FakeDirectory
from tests.harm.front import Front

pytestmark = pytest.mark.asyncio(loop_scope="module")

GOOD, UNSEEN, EXPIRED, REVOKED = "sk-pn-good", "sk-pn-unseen", "sk-pn-expired", "sk-pn-revoked"
NOT_KEYS = ("sk-pn-unknown", EXPIRED, REVOKED, "sk-pn-goo", GOOD + "d", GOOD.upper(), GOOD[::-1], "'; DROP TABLE keys; --")
VOLATILE = {"date", "x-request-id", "openai-processing-ms"}


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _facts(key_id: str, expires_at_s: float = 0.0) -> KeyFacts:
    return KeyFacts(KeyId(key_id), TenantId("acme"), expires_at_s=expires_at_s)


class Ahead(SystemClock):
    """Its wall clock may be put forward."""

    ahead_s = 0.0

    def wall_s(self) -> float:
        return SystemClock.wall_s(self) + self.ahead_s


@dataclass(slots=True)
class Door:
    front: Front
    directory: FakeDirectory
    clock: Ahead

    async def ask(self, secret: str, address: str, **headers: str) -> httpx.Response:
        """As a trusted proxy before Envoy brings it from this address."""
        told = {"authorization": f"Bearer {secret}", "x-forwarded-for": address, **headers}
        return await self.front.client.get("/v1/models", headers=told)

    async def guess(self, address: str, times: int = GUESSES) -> list[int]:
        """Statuses of wrong keys, each another."""
        return [(await self.ask(f"sk-pn-{address}-{number}", address)).status_code for number in range(times)]


@pytest_asyncio.fixture(loop_scope="module")
async def door(front: Front) -> AsyncIterator[Door]:
    """With a trusted proxy before Envoy, so that a test may come from several addresses."""
    clock = Ahead()
    known = {_digest(GOOD): _facts("good"), _digest(UNSEEN): _facts("unseen")}
    known[_digest(EXPIRED)] = _facts("expired", clock.wall_s() + 600)
    directory = FakeDirectory(known)
    before, keys = front.mesh.callers, Keys(directory, clock)
    address_of = partial(caller_address, proxies_before_envoy=1)
    front.mesh.callers = Callers(keys, GatewayMetrics(CollectorRegistry()), guesser_of=address_of)
    yield Door(front, directory, clock)
    front.mesh.callers = before
    await keys.close()


async def test_guesses_from_one_address_are_slowed_down_and_cost_the_registry_nothing(door: Door) -> None:
    assert set(await door.guess("198.51.100.1")) == {401}
    asked = door.directory.asked
    answer = await door.ask("sk-pn-another", "198.51.100.1")
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) >= 1
    assert "wait" in answer.json()["error"]["message"]
    assert set(await door.guess("198.51.100.1", 50)) == {429}
    assert door.directory.asked == asked


async def test_others_are_let_in_meanwhile(door: Door) -> None:
    await door.guess("198.51.100.2", GUESSES + 5)
    assert (await door.ask(UNSEEN, "198.51.100.3")).status_code == 200
    assert (await door.ask("sk-pn-wrong", "198.51.100.3")).status_code == 401, "whose first wrong key it is"
    assert (await door.ask(GOOD, "")).status_code == 200


async def test_a_key_in_use_is_let_in_from_an_address_that_others_guess_from(door: Door) -> None:
    assert (await door.ask(GOOD, "198.51.100.4")).status_code == 200
    await door.guess("198.51.100.4", GUESSES + 5)
    assert (await door.ask(GOOD, "198.51.100.4")).status_code == 200
    assert (await door.ask(UNSEEN, "198.51.100.4")).status_code == 429, "whether it is a key is what a guesser wants to know"


async def test_a_network_of_ipv6_is_one_guesser(door: Door) -> None:
    for number in range(GUESSES):
        await door.ask(f"sk-pn-six-{number}", f"2001:db8:0:7:{number:x}::1")
    assert (await door.ask("sk-pn-six", "2001:db8:0:7:ffff::1")).status_code == 429
    assert (await door.ask("sk-pn-six", "2001:db8:0:8::1")).status_code == 401


async def test_whoever_claims_other_addresses_is_still_one_guesser(door: Door) -> None:
    """Where no proxy is trusted, an address is what Envoy saw."""
    keys = Keys(door.directory, SystemClock())
    door.front.mesh.callers = Callers(keys, GatewayMetrics(CollectorRegistry()), guesser_of=caller_address)
    statuses = [(await door.ask(f"sk-pn-x-{n}", f"203.0.113.{n}")).status_code for n in range(GUESSES + 5)]
    assert statuses == [401] * GUESSES + [429] * 5
    spoofed = {"x-real-ip": "203.0.113.99", "x-envoy-external-address": "203.0.113.99", "forwarded": "for=203.0.113.99"}
    assert (await door.ask("sk-pn-x", "203.0.113.99, 203.0.113.98", **spoofed)).status_code == 429
    await keys.close()


async def test_every_key_that_is_none_is_refused_in_the_same_words(door: Door) -> None:
    assert (await door.ask(EXPIRED, "192.0.2.1")).status_code == 200
    door.clock.ahead_s = 601.0
    answers = [await door.ask(secret, f"192.0.2.{number}") for number, secret in enumerate(NOT_KEYS)]
    shown = {
        (answer.status_code, answer.text, tuple(sorted((k, v) for k, v in answer.headers.items() if k not in VOLATILE)))
        for answer in answers
    }
    assert len(shown) == 1, shown
    assert answers[0].status_code == 401


class OnlyItsHash(str):
    """A secret that may be hashed whole, and neither compared nor taken apart: time told of it would be told to a guesser."""

    __slots__ = ()

    def _never(self, *_: object) -> NoReturn:
        raise AssertionError("a secret was looked at")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _never
    __contains__ = __getitem__ = __iter__ = __hash__ = _never
    startswith = endswith = find = index = partition = split = _never  # type: ignore[assignment]


async def test_a_secret_is_only_ever_looked_up_by_its_hash() -> None:
    directory = FakeDirectory({_digest(GOOD): _facts("good")})
    keys = Keys(directory, SystemClock())
    assert not keys.knows(OnlyItsHash(GOOD))
    for _ in range(2):  # asked for, and then known
        assert (await keys.find(OnlyItsHash(GOOD))).facts.key_id == "good"
    assert keys.knows(OnlyItsHash(GOOD))
    for _ in range(2):  # asked for, and then known to be none
        with pytest.raises(KeyRefused):
            await keys.find(OnlyItsHash("sk-pn-wrong"))
    assert directory.asked == 2
    await keys.close()


async def test_a_million_guesses_take_a_bounded_room() -> None:
    guesses = Guesses()
    for number in range(MAX_ADDRESSES + 5_000):
        guesses.refused(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", float(number) / 1e6)
    assert len(guesses._refused) <= MAX_ADDRESSES
    keys = Keys(FakeDirectory({}), SystemClock(), KeyLimits(refused=100))
    for number in range(500):
        with pytest.raises(KeyRefused):
            await keys.find(f"sk-pn-{number}")
    assert len(keys._refused) <= 100
    await keys.close()
