"""Hashing: what it costs, that a missing hash costs the same, that few are checked at once."""

from __future__ import annotations

import asyncio
import threading

import argon2
import pytest
from argon2.profiles import CHEAPEST, RFC_9106_LOW_MEMORY

from registry.accounts.passwords import AT_ONCE, RECOMMENDED, WAITING, Passwords
from registry.accounts.types import PasswordsBusy


def test_the_parameters_are_the_rfcs_second_recommended_option() -> None:
    assert RECOMMENDED == RFC_9106_LOW_MEMORY


async def test_a_password_fits_its_own_hash_alone() -> None:
    passwords = Passwords(CHEAPEST)
    stored = await passwords.hash("correct horse")
    assert await passwords.fits(stored, "correct horse")
    assert not await passwords.fits(stored, "correct horsf")
    assert not await passwords.fits(None, "correct horse")
    assert not await passwords.fits("what no argon2 made", "correct horse")
    assert await passwords.hash("correct horse") != stored, "salted"


@pytest.mark.parametrize("parameters", [CHEAPEST, RECOMMENDED])
async def test_nobodys_hash_costs_what_a_real_one_does(parameters: argon2.Parameters) -> None:
    passwords = Passwords(parameters)
    nobody = passwords._nobody
    assert argon2.extract_parameters(nobody) == parameters
    assert not passwords.is_outdated(nobody)
    if parameters == CHEAPEST:  # it is well formed: the library computes it to the end, and finds another tag
        with pytest.raises(argon2.exceptions.VerifyMismatchError):
            argon2.PasswordHasher.from_parameters(parameters).verify(nobody, "x")


async def test_a_hash_of_other_parameters_is_outdated() -> None:
    assert Passwords(RECOMMENDED).is_outdated(await Passwords(CHEAPEST).hash("x"))


async def test_few_are_hashed_at_once_few_wait_and_the_rest_is_told_to_come_back() -> None:
    passwords, release = Passwords(CHEAPEST), threading.Event()
    counted, most, lock = 0, 0, threading.Lock()

    def slow() -> bool:
        nonlocal counted, most
        with lock:
            counted += 1
            most = max(most, counted)
        release.wait(30)
        with lock:
            counted -= 1
        return True

    tasks = [asyncio.create_task(passwords._in_turn(slow)) for _ in range(AT_ONCE + WAITING + 3)]
    refused, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    assert {type(task.exception()) for task in refused} == {PasswordsBusy}
    release.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes].count(PasswordsBusy) == 3
    assert most <= AT_ONCE
    assert await passwords._in_turn(lambda: 1) == 1, "there is room again"
